"""``python gpu/pack.py FILE.tar.gz``: what gpu/ needs and nothing else, to be unpacked on a machine with a GPU."""

from __future__ import annotations

import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from foundation.cli import ArgumentParser, run  # noqa: E402
from foundation.files import atomic_file  # noqa: E402
from gpu.catalogue import PARTS  # noqa: E402

CODE = ("foundation", "gpu", "runtime", "arcflow", "engines", "export")
_SOURCES = {".py", ".toml", ".txt", ".md", ".cu", ".cuh", ".hpp"}
_GOLDEN = ("tests/golden/solver.json", "pyproject.toml", "LICENSE", "NOTICE")
_MODELS = {"c": ("engines/bundles/tiny-fp32-cpu",), "d": ("engines/bundles/tiny-fp32-cpu",), "g": ("models/tiny",)}
"""What parts need besides code."""


def main(argv: Sequence[str] | None = None) -> int:
    """Write the archive, print its size. Raises ArcFlowError."""
    parser = ArgumentParser(prog="python gpu/pack.py", description="Pack what gpu/ needs.")
    parser.add_argument("archive", type=Path, help="to write, ends with .tar.gz")
    parser.add_argument("--part", default=",".join(PARTS), metavar="A,B", help="for which parts (default: all)")
    arguments = parser.parse_args(argv)
    letters = arguments.part.split(",")
    if unknown := [letter for letter in letters if letter not in PARTS]:
        parser.error(f"--part {','.join(unknown)} is unknown; allowed: {', '.join(PARTS)}")
    paths = sorted(set(files(letters)))
    with atomic_file(arguments.archive) as temporary, tarfile.open(temporary, "w:gz") as archive:
        for path in paths:
            archive.add(path, arcname=f"arcflow/{path.relative_to(ROOT).as_posix()}", recursive=False)
    print(f"{arguments.archive}: {len(paths)} files, {arguments.archive.stat().st_size / 1e6:.1f} MB")
    return 0


def files(letters: Sequence[str]) -> Iterator[Path]:
    """The files for those parts."""
    for folder in CODE:
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in _SOURCES and path.is_file() and not {"__pycache__", "bundles"} & set(path.parts):
                yield path
    for name in _GOLDEN:
        yield ROOT / name
    for letter in letters:
        for folder in _MODELS.get(letter, ()):
            yield from (path for path in (ROOT / folder).rglob("*") if path.is_file())


if __name__ == "__main__":
    sys.exit(run(main))
