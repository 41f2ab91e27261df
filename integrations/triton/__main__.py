"""``python -m integrations.triton engines/bundles/tiny-fp16-cpu --out models``: a model repository for Triton."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from foundation.cli import ArgumentParser, run

_EXAMPLES = """examples:
  python -m integrations.triton engines/bundles/tiny-fp16-cpu --out triton-models
  python -m integrations.triton BUNDLE --out triton-models --name flux --gpus 0,1 --copy
  tritonserver --model-repository triton-models

The server's Python needs this package: pip install arcflow.
"""


def build_parser() -> ArgumentParser:
    """The command line of ``integrations.triton``."""
    parser = ArgumentParser(
        prog="python -m integrations.triton",
        description="Make a model repository for Triton from a bundle.",
        epilog=_EXAMPLES,
    )
    add = parser.add_argument
    add("bundle", type=Path, metavar="BUNDLE", help="a bundle's folder")
    add("--out", type=Path, required=True, metavar="DIR", help="the repository; the model's folder in it must be new")
    add("--name", help="the model's name in Triton (default: the bundle's model)")
    add("--responses", choices=("decoupled", "single"), default="decoupled",
        help="decoupled: partial images stream before the image; single: one answer, also over plain HTTP")  # fmt: skip
    add("--host", choices=("auto", "python", "native"), default="auto",
        help="what runs it (default: for CPU bundles the C++ core where it is installed)")  # fmt: skip
    add("--gpus", metavar="N,N", help="an instance on each of these GPUs (default: 0; none for a bundle for the CPU)")
    add("--instances", type=int, default=1, metavar="N", help="instances on each of them (default: %(default)s)")
    add("--threads", type=int, metavar="N", help="compute threads of an instance (default: the cores, at most 8)")
    add("--batch-wait", type=int, default=2000, metavar="US",
        help="microseconds that a request waits for others to join (default: %(default)s)")  # fmt: skip
    add("--queue", type=int, default=64, metavar="N", help="requests that may wait (default: %(default)s)")
    add("--copy", action="store_true", help="put a copy of the bundle into the repository, to move it elsewhere")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write the repository; returns 0. Raises ArcFlowError; nothing is written then."""
    arguments = build_parser().parse_args(argv)
    from integrations.triton.repository import Layout, write_repository

    folder = write_repository(arguments.bundle, arguments.out, Layout(
        name=arguments.name,
        responses=arguments.responses,
        host=arguments.host,
        gpus=arguments.gpus,
        instances=arguments.instances,
        threads=arguments.threads,
        batch_wait=arguments.batch_wait,
        queue=arguments.queue,
        copy=arguments.copy,
    ))  # fmt: skip
    print(f"wrote {folder}\nserve it: tritonserver --model-repository {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
