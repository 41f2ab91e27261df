"""Which card FLUX.1-dev and Qwen-Image fit: ``python benchmarks/cards.py`` prints README's table.

Made from headers: hollow files of the published shapes, which take no room, and the estimate of ``export.build
--dry-run`` for one image of the model's usual size at a time. No weights, no network and no GPU are needed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from foundation.cli import ArgumentParser, run

if TYPE_CHECKING:
    from engines.memory.card import CardMemory
    from export.precision import Precision
    from export.students.subject import Subject

MODELS = {"flux": "1024x1024", "qwen": "1328x1328"}
"""The models, and the size of image that each is for."""

TARGET = "sm120"
_AFTER = ("conditioner", "backbone", "vae_decoder")
"""The networks that are no text encoders."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, in Markdown. Raises ArcFlowError."""
    parser = ArgumentParser(prog="python benchmarks/cards.py", description="Print which card the large models fit.")
    parser.add_argument("--model", action="append", choices=sorted(MODELS), help="this model alone (default: all)")
    arguments = parser.parse_args(argv)
    head = ("model", "text encoders", "conditioner", "backbone", "VAE", "working", "resident", "with `--low-vram`")
    print(_line(head))
    print(_line(["---", *["---:"] * 7]))
    for model in arguments.model or MODELS:
        for row in _rows(model):
            print(_line(row), flush=True)
    return 0


def _rows(model: str) -> Iterator[Sequence[str]]:
    from benchmarks.fullsize.shapes import published
    from benchmarks.fullsize.synthesise import write_hollow_model
    from export.precision import Precision
    from export.sources.models import choose
    from export.students.subject import open_subject

    with TemporaryDirectory() as made:
        folder = Path(made)
        write_hollow_model(published(model), folder)
        subject = open_subject(choose(model), str(folder / "base"), str(folder / "adapter"))
        for precision in (Precision.FP8, Precision.FP16, Precision.BF16):
            memory = _estimated(subject, precision, folder)
            sizes = memory.networks
            encoders = sum(size for name, size in sizes.items() if name not in _AFTER)
            working = memory.working + memory.cached
            yield (
                f"{model}, {precision}, {MODELS[model]}",
                *(_gb(size) for size in (encoders, *(sizes.get(name, 0) for name in _AFTER), working)),
                *(_fit(total) for total in (memory.resident, memory.low_vram)),
            )


def _estimated(subject: Subject, precision: Precision, folder: Path) -> CardMemory:
    from export.assembling.estimate import estimate_card
    from export.assembling.inputs import inspect
    from export.assembling.wanted import Wanted
    from export.errors import ExportError
    from export.tensorrt.profiles import choose_shapes

    spec = subject.spec
    shapes = choose_shapes(spec.limits, MODELS[spec.name], "1")
    wanted = Wanted(
        spec=spec, precision=precision, target=TARGET, out=folder / "out", workdir=folder / "work", shapes=shapes
    )
    memory = estimate_card(inspect(wanted, subject))
    if memory is None:
        raise ExportError(f"nothing is known of what {spec.name} takes of a GPU")
    return memory


def _fit(total: int) -> str:
    from engines.memory.card import card_for

    card = card_for(total)
    return f"{_gb(total)} ({'no card' if card is None else f'**{card} GB**'})"


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f}" if size else ""


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(run(main))
