"""Leaves one architecture's machine code in a CUDA library, in place; the rest becomes zeros, which archives remove.

nvcc puts the code of all architectures into the section ``.nv_fatbin``: containers, one a source file, of entries, one
an architecture. What is read of them:

| container | entry | |
|---|---|---|
| 0, uint32 | | 0xBA55ED50 |
| | 0, uint16 | kind: 2 is machine code, 1 is PTX |
| 6, uint16 | 4, uint32 | bytes of this header |
| 8, uint64 | 8, uint64 | bytes that follow it |
| | 16, uint32 | of them used, where the code is compressed; else 0 |
| | 28, uint32 | architecture: 90 for sm_90 and sm_90a |

Containers stay where they are: the library has their addresses. One of which nothing is left gets the smallest entry
that the library has for another architecture: a kernel that is asked for all the same is then "not for this GPU".
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from foundation.errors import ArcFlowError

MAGIC = 0xBA55ED50
SECTION = b".nv_fatbin"
_CODE = 2
_ZSTD = b"\x28\xb5\x2f\xfd"
_KERNEL = re.compile(rb"\.text\.([A-Za-z0-9_$]+)")


@dataclass(frozen=True)
class Container:
    """Entries of one source file: where its header begins, bytes of the header and of what follows it."""

    start: int
    header: int
    size: int

    @property
    def end(self) -> int:
        """Where the next begins."""
        return self.start + self.header + self.size


@dataclass(frozen=True)
class Entry(Container):
    """Code for one architecture. used: bytes of it that are used; the rest is padding."""

    used: int
    kind: int
    architecture: int


@dataclass(frozen=True)
class Pruned:
    """What was done: containers, entries that were kept, containers left out by the names of their kernels, bytes."""

    containers: int
    kept: int
    left_out: int
    code_bytes: int


def prune(library: bytearray, architecture: int, unwanted: str | None = None) -> Pruned:
    """Keep the code for ``architecture`` (90), less that of containers all whose kernels' names match ``unwanted``.

    unwanted: a regular expression, searched for in mangled names. Raises ArcFlowError where the library has no code for
    the architecture, or is not what is described above.
    """
    found = list(containers(library))
    pattern = None if unwanted is None else re.compile(unwanted.encode())
    foreign = [e for c in found for e in entries(library, c) if e.kind == _CODE and e.architecture != architecture]
    least = min(foreign, key=lambda entry: entry.header + entry.size, default=None)
    filler = b"" if least is None else bytes(library[least.start : least.end])
    kept = left_out = code = 0
    for container in found:
        ours = [e for e in entries(library, container) if e.kind == _CODE and e.architecture == architecture]
        named = [kernels(library, entry) for entry in ours] if pattern is not None else []
        if pattern is not None and named and all(names and all(map(pattern.search, names)) for names in named):
            left_out += 1
            ours = []
        body = b"".join(bytes(library[entry.start : entry.end]) for entry in ours)
        kept, code = kept + len(ours), code + len(body)
        if not body:
            body = filler
        room = container.size
        if not body or len(body) > room:
            continue
        start = container.start + container.header
        library[start : container.end] = body + bytes(room - len(body))
        struct.pack_into("<Q", library, container.start + 8, len(body))
    if not kept:
        there = sorted({entry.architecture for entry in foreign})
        raise ArcFlowError(
            f"the library has no machine code for sm_{architecture}, only for "
            f"{', '.join(f'sm_{one}' for one in there) or 'nothing'}; take one that is built for this GPU"
        )
    return Pruned(len(found), kept, left_out, code)


def containers(library: bytes | bytearray) -> Iterator[Container]:
    """All containers of the library. Raises ArcFlowError where there is no such section."""
    at, end = section(library)
    while at + 16 <= end:
        magic, _, header, size = struct.unpack_from("<IHHQ", library, at)
        if magic != MAGIC:
            at += 8  # Between containers there may be zeros: they are aligned.
            continue
        yield Container(at, header, size)
        at += header + size


def entries(library: bytes | bytearray, container: Container) -> Iterator[Entry]:
    """The entries of a container."""
    at = container.start + container.header
    while at + 32 <= container.end:
        kind, _, header, size, used = struct.unpack_from("<HHIQI", library, at)
        (architecture,) = struct.unpack_from("<I", library, at + 28)
        if header < 32 or at + header + size > container.end:
            return
        yield Entry(at, header, size, used or size, kind, architecture)
        at += header + size


def kernels(library: bytes | bytearray, entry: Entry) -> set[bytes]:
    """Mangled names of the kernels of an entry. Raises ArcFlowError where it cannot be unpacked."""
    start = entry.start + entry.header
    code = bytes(library[start : start + entry.used])
    if code.startswith(_ZSTD):
        try:
            from zstandard import ZstdDecompressor
        except ImportError as error:
            raise ArcFlowError("names of compressed kernels are read with zstandard: pip install zstandard") from error
        code = ZstdDecompressor().decompress(code)
    return set(_KERNEL.findall(code))


def section(library: bytes | bytearray) -> tuple[int, int]:
    """Where the containers begin and end in a 64-bit ELF file. Raises ArcFlowError."""
    if bytes(library[:5]) != b"\x7fELF\x02":
        raise ArcFlowError("this is no library for 64-bit Linux")
    try:
        (table,) = struct.unpack_from("<Q", library, 40)
        width, count, names = struct.unpack_from("<HHH", library, 58)
        headers = [struct.unpack_from("<IIQQQQ", library, table + width * place) for place in range(count)]
        strings = headers[names][4]
    except (struct.error, IndexError) as error:
        raise ArcFlowError(f"the library ends too early ({error}): fetch it again") from error
    for name, _, _, _, offset, size in headers:
        at = strings + name
        if bytes(library[at : at + len(SECTION) + 1]) == SECTION + b"\0":
            return offset, offset + size
    raise ArcFlowError("the library holds no CUDA code: it has no section .nv_fatbin")
