"""External data that survives being killed: one safetensors file, written tensor by tensor, checked as a whole.

Tensors are written by runs of rows at their places in a file of its full size, ``<name>.part``. A journal gets one
line a finished tensor, with the digest of what was meant to be written; a run that was killed continues with the
tensors that it does not name. In the end the file is read once: a tensor that is not what the journal says is made
again, and only a file that is right in all of its bytes takes its name.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from export.errors import ExportError, MergeError, WeightsError
from export.reporting import Report, silent
from export.weights.files import DTYPES
from export.weights.layout import Entry, Layout, layout, raw
from foundation.files import sha256_file

if TYPE_CHECKING:
    import torch

_FORMAT = 1
_READ = 8 << 20
_ROUNDS = 3
"""How often the finished file is checked and its wrong tensors are made again, before the disk is blamed."""

Produce = Callable[[str], Iterable["torch.Tensor"]]
"""Name of an entry to its runs of rows, in order, of the entry's dtype."""


@dataclass(frozen=True)
class StoredFile:
    """A finished file of external data, and its digest."""

    path: Path
    sha256: str
    size: int


def write_external(
    path: Path, entries: Sequence[Entry], produce: Produce, identity: str = "", report: Report = silent
) -> StoredFile:
    """Write ``entries`` to the safetensors file ``path``, or finish what an earlier run began.

    produce is asked for the entries in their order, for those only that are not there yet. identity: whatever else
    the bytes depend on (digest of the weights); what was begun for another identity is not used. A finished file is
    kept if its journal, which stays beside it, still tells the truth. report: told of "write" and "check", in bytes.

    Raises ExportError where the disk is full or closed, or does not keep what is written. A MergeError or WeightsError
    of ``produce`` (values that are not finite) passes, and nothing is left of the file. Memory: one run of rows.
    """
    places = layout(entries)
    key = hashlib.sha256(places.header + identity.encode()).hexdigest()
    journal = _Journal(path, key)
    done = journal.finished(path)
    if done is not None:
        report("check", places.size, places.size)
        return done
    part = _Part(path, places)
    if not (journal.read() and part.is_whole()):
        part.create()
        journal.create()
    written = sum(entry.size for entry in entries if entry.name in journal.digests)
    try:
        for entry in entries:
            if entry.name not in journal.digests:
                journal.add(entry.name, part.write(entry, produce(entry.name)))
                written += entry.size
            report("write", written, places.size)
        return _finish(part, journal, {entry.name: entry for entry in entries}, produce, report)
    except (MergeError, WeightsError):
        part.path.unlink(missing_ok=True)  # These weights cannot be stored: there is nothing to continue.
        journal.path.unlink(missing_ok=True)
        raise


def _finish(
    part: _Part, journal: _Journal, entries: Mapping[str, Entry], produce: Produce, report: Report
) -> StoredFile:
    for _ in range(_ROUNDS):
        wrong, digest = part.check(entries, journal.digests, report)
        if not wrong:
            journal.close(digest)
            part.rename()
            return StoredFile(part.final, digest, part.places.size)
        for name in wrong:
            journal.add(name, part.write(entries[name], produce(name)))
    raise ExportError(
        f"{part.path}: {wrong[0]} reads back other than it was written, {_ROUNDS} times; "
        "check the disk, or choose another --workdir"
    )


class _Part:
    """The file while it is being written. final: the name that it takes in the end."""

    def __init__(self, final: Path, places: Layout) -> None:
        self.final = final
        self.path = final.with_name(final.name + ".part")
        self.places = places

    def is_whole(self) -> bool:
        """Whether there is a file to continue with."""
        try:
            return self.path.stat().st_size == self.places.size
        except OSError:
            return False

    def create(self) -> None:
        """A new file of the full size, with its header: where there is no room, nothing is begun."""
        with self._disk():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.unlink(missing_ok=True)
            if shutil.disk_usage(self.path.parent).free < self.places.size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            try:
                with self.path.open("wb") as stream:
                    if hasattr(os, "posix_fallocate"):
                        os.posix_fallocate(stream.fileno(), 0, self.places.size)
                    else:
                        stream.truncate(self.places.size)
                    stream.write(self.places.header)
            except OSError:
                self.path.unlink(missing_ok=True)
                raise

    def write(self, entry: Entry, runs: Iterable[torch.Tensor]) -> str:
        """Write one tensor at its place. Returns the digest of what should now be there."""
        digest, left, torch_name = hashlib.sha256(), entry.size, DTYPES[entry.dtype][0]
        with self._open("r+b") as stream:
            stream.seek(self.places.offsets[entry.name])
            for run in runs:
                data = raw(run)
                left -= len(data)
                if left < 0 or str(run.dtype) != f"torch.{torch_name}":
                    raise ExportError(f"{entry.name}: {run.dtype} of other size than {entry} was given to be stored")
                digest.update(data)
                with self._disk():
                    stream.write(data)
            with self._disk():
                stream.flush()
        if left:
            raise ExportError(f"{entry.name}: {left} bytes less than {entry} were given to be stored")
        return digest.hexdigest()

    def check(self, entries: Mapping[str, Entry], digests: Mapping[str, str], report: Report) -> tuple[list[str], str]:
        """Read everything: (names of the tensors that are not what their digests say, digest of the file)."""
        wrong, whole, done = [], hashlib.sha256(), len(self.places.header)
        with self._open("r+b") as stream:
            with self._disk():
                if stream.read(done) != self.places.header:
                    stream.seek(0)
                    stream.write(self.places.header)
            whole.update(self.places.header)
            for name in self.places.offsets:
                digest, left = hashlib.sha256(), entries[name].size
                while left:
                    with self._disk():
                        data = stream.read(min(left, _READ))
                    if not data:
                        raise ExportError(f"{self.path} was cut while it was read; run the command again")
                    digest.update(data)
                    whole.update(data)
                    left -= len(data)
                if digest.hexdigest() != digests[name]:
                    wrong.append(name)
                done += entries[name].size
                report("check", done, self.places.size)
        return wrong, whole.hexdigest()

    def rename(self) -> None:
        with self._disk():
            os.replace(self.path, self.final)

    @contextmanager
    def _open(self, mode: str) -> Iterator[BinaryIO]:
        with self._disk():
            stream: BinaryIO = self.path.open(mode)  # type: ignore[assignment]
        with stream:
            yield stream

    def _disk(self) -> AbstractContextManager[None]:
        return _disk(self.final, self.places.size)


class _Journal:
    """What is finished, a line each: ``digests`` by name. The first line says of what, the last the file's digest."""

    def __init__(self, final: Path, key: str) -> None:
        self.path = final.with_name(final.name + ".journal")
        self.digests: dict[str, str] = {}
        self._key = key
        self._file: str | None = None

    def read(self) -> bool:
        """Take up an earlier run's journal; False if there is none of this key. A torn last line is left out."""
        try:
            data = self.path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            first, *lines = [json.loads(line) for line in whole.splitlines()]
            if first != {"format": _FORMAT, "key": self._key}:
                return False
            self.digests = {line["name"]: line["sha256"] for line in lines if "name" in line}
            self._file = next((line["file"] for line in lines if "file" in line), None)
        except (OSError, ValueError, KeyError, TypeError):
            return False
        if len(whole) < len(data):
            with _disk(self.path, 0):
                os.truncate(self.path, len(whole))
        return True

    def finished(self, final: Path) -> StoredFile | None:
        """The finished file, if there is one and it is what its journal says."""
        try:
            if self.read() and self._file is not None and sha256_file(final) == self._file:
                return StoredFile(final, self._file, final.stat().st_size)
        except OSError:
            pass  # There is no such file: it is made.
        return None

    def create(self) -> None:
        self.digests, self._file = {}, None
        with _disk(self.path, 0):
            self.path.write_text(json.dumps({"format": _FORMAT, "key": self._key}) + "\n")

    def add(self, name: str, digest: str) -> None:
        self.digests[name] = digest
        self._append(json.dumps({"name": name, "sha256": digest}) + "\n")

    def close(self, digest: str) -> None:
        self._append(json.dumps({"file": digest}) + "\n")

    def _append(self, line: str) -> None:
        with _disk(self.path, 0), self.path.open("a") as stream:
            stream.write(line)


@contextmanager
def _disk(path: Path, size: int) -> Iterator[None]:
    """Turn what the disk rejects into one clear error."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            need = f", which has {size:,} bytes" if size else ""
            raise ExportError(f"no room for {path}{need}; free some, or choose another --workdir") from error
        raise ExportError(
            f"cannot write {path}: {error.strerror or error}; choose another --workdir, one that you may write to"
        ) from error
