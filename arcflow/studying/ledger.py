"""What a study has found: a line of JSON a finished run, and locks by which several processes share the work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from arcflow.errors import StudyError

Point = tuple[int, float, float]
"""Of a convergence curve: iterations done, processor seconds spent, relative L2 over the held-out noises."""


class Few(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Figures at one number of evaluations, over the study's held-out noises.

    errors: relative L2 to the teacher's many steps, by noise; psnr_db: mean against the teacher's images; frechet: of
    the judge's features to those of real images, where there are any; from_teacher: likewise to the teacher's images;
    accuracy: share of images that the judge takes for their prompt's class. None of the reference itself.
    """

    errors: tuple[float, ...] = ()
    psnr_db: float | None = None
    frechet: float | None = None
    from_teacher: float | None = None
    accuracy: float | None = None

    @property
    def rel_l2(self) -> float:
        """The mean error; 0 of the reference itself."""
        return sum(self.errors) / len(self.errors) if self.errors else 0.0


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One finished run, or the teacher's own steps (variant "teacher").

    key: digest of all that it depends on; trained, share: trained parameters, and as a share of the backbone's;
    seconds: of one core; curve: the error while it was trained; few: figures by number of evaluations; diversity: mean
    distance (root mean square over pixels in [-1, 1]) of two images of one prompt, by prompt; bands: (upper sigma,
    lower sigma, relative L2 of what the state moves otherwise than the teacher's in between); gammas: by segment, the
    gates' weight in each bin of log gamma; fp8: errors by noise with the linears simulated in FP8.
    """

    key: str
    variant: str
    seed: int
    precision: str
    few: dict[str, Few]
    diversity: tuple[float, ...]
    trained: int = 0
    share: float = 0.0
    iterations: int = 0
    seconds: float = 0.0
    curve: tuple[Point, ...] = ()
    bands: tuple[tuple[float, float, float], ...] = ()
    gammas: tuple[tuple[float, ...], ...] = ()
    fp8: tuple[float, ...] = ()


@dataclass(frozen=True)
class Ledger:
    """The finished runs in ``folder/runs.jsonl``, and the locks of those in work."""

    folder: Path

    @property
    def path(self) -> Path:
        """The file of records."""
        return self.folder / "runs.jsonl"

    def read(self) -> dict[str, Record]:
        """All records by key. A last line that was not written whole is left out.

        Raises StudyError where another line is none of a study.
        """
        try:
            lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return {}
        found = {}
        for number, line in enumerate(lines[:-1], 1):
            try:
                record = msgspec.json.decode(line, type=Record)
            except msgspec.MsgspecError as error:
                raise StudyError(
                    f"line {number} of {self.path} is no record of a study ({error}): take the line out, or give "
                    "another --workdir"
                ) from error
            found[record.key] = record
        return found

    def add(self, record: Record) -> None:
        """Append a record, whole or not at all. Raises StudyError where it cannot be written."""
        line = msgspec.json.encode(record) + b"\n"
        with self._locked("ledger"):
            try:
                with self.path.open("r+b" if self.path.exists() else "w+b") as stream:
                    data = stream.read()
                    stream.seek(data.rfind(b"\n") + 1)  # Over a line that a process died in.
                    stream.truncate()
                    stream.write(line)
                    stream.flush()
                    os.fsync(stream.fileno())
            except OSError as error:
                raise StudyError(
                    f"cannot write {self.path}: {error.strerror or error}; make room, and again"
                ) from error

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        with locked(self.folder, name, wait=True):
            yield


@contextmanager
def locked(folder: Path, name: str, *, wait: bool = False) -> Iterator[bool]:
    """A lock of that name, held in the block, and let go of by the system when its process ends, however it ends.

    Yields whether it was had: another process, or another block of this one, may hold it. wait: until it is had.
    """
    import fcntl

    path = folder / "locks" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
