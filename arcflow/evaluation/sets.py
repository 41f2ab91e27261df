"""Images for the programs that judge prompts: GenEval's and DPG-Bench's folders, filled by a student.

GenEval reads ``00000/metadata.jsonl``, one line of its own file, and ``00000/samples/0000.png`` and further. DPG-Bench
reads one PNG a prompt file, of the same name: four images in two rows, each as many pixels wide as high.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arcflow.errors import PromptsError
from arcflow.pipelines.generation import Generator, save_image, settings_of
from arcflow.prompts.lines import prompt_of
from arcflow.sources.pipeline import quiet
from foundation.files import atomic_file
from foundation.noise import image_seeds

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGES = 4
"""Images of each prompt, in both."""


@dataclass(frozen=True)
class ImageFile:
    """A PNG of a set. path: in the set's folder; seeds: one an image of it, four of them side by side in two rows.

    beside: texts that go with it, by their path in the set's folder.
    """

    path: str
    prompt: str
    seeds: tuple[int, ...]
    beside: dict[str, str] = field(default_factory=dict)


def geneval(metadata: Path, seed: int) -> list[ImageFile]:
    """The files for GenEval's ``evaluation_metadata.jsonl``: four a line, from the noises of seed + 0, 1, 2, ...

    Raises PromptsError where the file is none.
    """
    try:
        lines = [line for line in metadata.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise PromptsError(
            f"cannot read {metadata}: {error}; give --metadata GenEval's prompts/evaluation_metadata.jsonl"
        ) from error
    found = []
    for number, line in enumerate(lines):
        prompt, folder = prompt_of(line, "prompt", f"line {number + 1} of {metadata}"), f"{number:05d}"
        for place, noise in enumerate(image_seeds(seed + IMAGES * number, IMAGES)):
            beside = {} if place else {f"{folder}/metadata.jsonl": line + "\n"}
            found.append(ImageFile(f"{folder}/samples/{place:04d}.png", prompt, (noise,), beside))
    return _some(found, metadata)


def dpg(folder: Path, seed: int) -> list[ImageFile]:
    """The files for DPG-Bench's folder of prompts: one a text file, of four noises. Raises PromptsError."""
    found = []
    for number, path in enumerate(sorted(folder.glob("*.txt"))):
        try:
            prompt = " ".join(path.read_text(encoding="utf-8").split())
        except (OSError, UnicodeDecodeError) as error:
            raise PromptsError(f"cannot read {path}: {error}; download DPG-Bench's prompts again") from error
        if not prompt:
            raise PromptsError(f"{path} holds no prompt; download DPG-Bench's prompts again")
        found.append(ImageFile(f"{path.stem}.png", prompt, image_seeds(seed + IMAGES * number, IMAGES)))
    return _some(found, folder)


SETS: dict[str, Callable[[Path, int], list[ImageFile]]] = {"geneval": geneval, "dpg": dpg}


def missing(files: Sequence[ImageFile], settings: dict[str, Any], out: Path) -> list[ImageFile]:
    """Those that are not in ``out`` yet. Raises PromptsError where others are in their place."""
    left = []
    for file in files:
        path = out / file.path
        if not path.exists():
            left.append(file)
        elif settings_of(path) != _settings(file, settings):
            raise PromptsError(
                f"{path} was made of another student or prompt, or with other settings; give another --out, or delete "
                f"{out}"
            )
    return left


def make(
    files: Sequence[ImageFile],
    generator: Generator,
    settings: dict[str, Any],
    out: Path,
    advance: Callable[[int], object],
) -> None:
    """Make these files; each appears whole, after what goes with it. advance: is told how many are done.

    settings: of the student, kept in each file. Raises ArcFlowError where ``out`` cannot be written.
    """
    with quiet():
        for done, file in enumerate(files, start=1):
            for name, text in file.beside.items():
                with atomic_file(out / name) as temporary:
                    temporary.write_text(text, encoding="utf-8")
            images = [generator.image(file.prompt, seed) for seed in file.seeds]
            save_image(_joined(images), _settings(file, settings), out / file.path)
            advance(done)


def _some(found: list[ImageFile], where: Path) -> list[ImageFile]:
    if not found:
        raise PromptsError(f"{where} holds no prompts; give --metadata GenEval's .jsonl, or DPG-Bench's folder of .txt")
    return found


def _settings(file: ImageFile, settings: dict[str, Any]) -> dict[str, Any]:
    return {**settings, "prompt": file.prompt, "seeds": list(file.seeds)}


def _joined(images: Sequence[Image]) -> Image:
    """One image, or four of one size in two rows, from the left."""
    from PIL import Image

    if len(images) == 1:
        return images[0]
    width, height = images[0].size
    whole = Image.new("RGB", (2 * width, 2 * height))
    for place, image in enumerate(images):
        whole.paste(image, ((place % 2) * width, (place // 2) * height))
    return whole
