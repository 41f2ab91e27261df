"""``python -m gpu.travel.kernels --capability 90``: compile all kernels for a GPU that is not here, into the cache.

The runtime there takes them where its NVRTC is of the same release; otherwise it compiles them itself, in a second.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from foundation.cli import ArgumentParser, run


def main(argv: Sequence[str] | None = None) -> int:
    """Compile, print the sizes. Raises ArcFlowError."""
    parser = ArgumentParser(prog="python -m gpu.travel.kernels", description="Compile the kernels into the cache.")
    parser.add_argument("--capability", type=int, default=90, help="of the GPU, 90 for 9.0 (default: %(default)s)")
    arguments = parser.parse_args(argv)
    from gpu.kernels.stub import stub_image
    from runtime.cuda.device.kernels import cache_folder, kernel_image

    made = (kernel_image(arguments.capability), stub_image(f"sm{arguments.capability}"))
    print(f"{cache_folder()}: {sum(map(len, made)) / 1e3:.0f} kB of code for sm_{arguments.capability}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
