"""``python -m gpu.travel.prepare --out .work/gpu``: make what a machine with a GPU and no network needs.

Compiles the kernels into the cache, packs Python packages, and says what to send and what to run there. gpu/prepare.sh
calls it, with a cache of its own.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from foundation.cli import ArgumentParser, run
from foundation.errors import ArcFlowError
from gpu.travel import site

ROOT = Path(__file__).resolve().parents[2]
KEPT = ("models", "engines/bundles")
"""What the first command keeps on that machine for the second."""

_TEXT = """
1. Send the repository and {first} ({first_mb:.1f} MB together). In the repository's root there:

     sh gpu/travel/on_gpu.sh first {first} "${{OUT:-out/gpu}}"

   It keeps models and bundles in a folder outside the repository, for the second.

2. Send the repository without {kept}, and {second} ({second_mb:.1f} MB together). Before that, here:

     mkdir -p {out}/aside && mv {kept_paths} {out}/aside/

   In the repository's root there, while that machine is still the same:

     sh gpu/travel/on_gpu.sh second {second} "${{OUT:-out/gpu}}"

   Afterwards, here:

     mv {out}/aside/models . && mv {out}/aside/bundles engines/

Each ends within seven minutes. Figures are in first.json and second.json, written after every record."""


def main(argv: Sequence[str] | None = None) -> int:
    """Make all of it and print the commands. Raises ArcFlowError."""
    parser = ArgumentParser(prog="python -m gpu.travel.prepare", description="Prepare a run on a machine with a GPU.")
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder to write to")
    add("--python", default="3.12", metavar="X.Y", help="Python of that machine (default: %(default)s)")
    add("--capability", type=int, default=90, help="of its GPU, 90 for 9.0 (default: %(default)s)")
    add("--limit", type=float, default=60.0, metavar="MB", help="of what one command is sent (default: %(default)s)")
    arguments = parser.parse_args(argv)
    out: Path = arguments.out
    print(f"Compiling the kernels for sm_{arguments.capability}", flush=True)
    compile_kernels(arguments.capability)
    print(f"Fetching packages for CPython {arguments.python}", flush=True)
    site.fetch(site.PACKAGES, arguments.python, out / "packages" / "wheels")
    wheels = sorted((out / "packages" / "wheels").glob("*.whl"))
    archive = out / "second" / "site.tar.xz"
    size = site.pack(wheels, out / "packages" / "site", archive, arguments.capability)
    print(f"{archive}: {size / 1e6:.1f} MB")
    print(what_to_send(out, arguments.limit))
    return 0


def compile_kernels(capability: int) -> None:
    """All kernels for a GPU that is not here, into the cache. Raises DeviceError.

    The runtime there takes them where its NVRTC is of the same release; otherwise it compiles them, in a second.
    """
    from gpu.kernels.stub import stub_image
    from runtime.cuda.device.kernels import cache_folder, kernel_image

    made = (kernel_image(capability), stub_image(f"sm{capability}"))
    print(f"{cache_folder()}: {sum(map(len, made)) / 1e3:.0f} kB of code for sm_{capability}")


def what_to_send(out: Path, limit: float) -> str:
    """What to send from ``out``, and what to run there. Raises ArcFlowError where it is more than ``limit`` MB."""
    tree, kept = tree_bytes(ROOT), sum(size_of(ROOT / name) for name in KEPT)
    sizes = {"first": tree + size_of(out / "first"), "second": tree - kept + size_of(out / "second")}
    for name, size in sizes.items():
        if size / 1e6 > limit:
            raise ArcFlowError(
                f"the {name} command would send {size / 1e6:.1f} MB, and {limit:.0f} MB may travel at once: "
                "see LIMIT_MB in gpu/prepare.sh, and what lies in the repository and is not ignored"
            )
    return _TEXT.format(
        first=out / "first",
        second=out / "second",
        out=out,
        kept=" and ".join(f"{name}/" for name in KEPT),
        kept_paths=" ".join(KEPT),
        first_mb=sizes["first"] / 1e6,
        second_mb=sizes["second"] / 1e6,
    )


def tree_bytes(root: Path) -> int:
    """Bytes of the repository's files, tracked ones and new ones that are not ignored. Raises ArcFlowError."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise ArcFlowError(f"git cannot list the repository's files: {done.stderr.decode().strip()}")
    paths = {root / name.decode() for name in done.stdout.split(b"\0") if name}
    return sum(path.stat().st_size for path in paths if path.is_file())


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    sys.exit(run(main))
