"""The model card of an adapter: ``README.md``, with the metadata that the Hugging Face hub reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from arcflow.adapter import CARD_FILE
from arcflow.needs.inventory import take_inventory
from arcflow.recipe import Recipe
from arcflow.sources.base import Base
from arcflow.sources.hub import find_card

Weights = Literal["average", "last"]
"""Which weights of a training run an adapter is made of."""

_TAGS = {"flux": "flux", "qwen": "qwen-image"}
_PAPER = "https://arxiv.org/abs/2602.09014"
_HUB = "https://huggingface.co"
_BODY = """# {title}

An [ArcFlow]({paper}) student of {base}:
it generates images in {nfe} network evaluations. This adapter holds what was trained (LoRA, momentum head, `norm_out`);
the base is needed besides.

| | |
|---|---|
{table}

## In diffusers

```python
import torch
from diffusers import {pipeline}

from arcflow.pipelines.loading import load_student

pipe = {pipeline}.from_pretrained("{place}"{revision}, dtype=torch.{dtype})
options = load_student(pipe, "{adapter}")
pipe.to("cuda")
image = pipe("a red fox", width={width}, height={height}, max_sequence_length={tokens}, **options).images[0]
```

## As ONNX or TensorRT engines

```
python -m export.build --model {model} --base {place}{at} --adapter {adapter}
```

Both need ArcFlow installed.

## Licence

{licence}
"""


def model_card(recipe: Recipe, base: Base, adapter: str, weights: Weights = "average", start: str | None = None) -> str:
    """The card of a student of ``base`` that was distilled by ``recipe``: Markdown below its metadata.

    adapter: what it is called in examples, a hub id or a folder's name; start: the adapter that training began with.
    Folders of this machine are named without their paths. Of a base on the hub, its own card is asked for its licence,
    which is left out where there is none to be had.
    """
    from huggingface_hub import ModelCard, ModelCardData

    found, place = take_inventory(recipe, base.blank()), base.place
    name = str(place.repository) if place else base.folder.resolve().name
    licence = _licence(base)
    width, height = recipe.distill.pixels[0]
    settings = recipe.distill
    averaged = weights == "average" and recipe.distill.loop.ema_gamma is not None
    kind = {"embedded": "an input of the backbone", "cfg": "built in"}[recipe.guidance_kind]
    table = {
        "base": f"[{name}]({_HUB}/{name})" if place else f"`{name}`",
        "recipe": f"`{recipe.name}`",
        "iterations": f"{recipe.distill.loop.iterations:,}, batch {recipe.distill.loop.batch}",
        "started from": f"`{_plain(start)}`" if start else "the base",
        "weights": "averaged over training" if averaged else "those of the last iteration",
        "network evaluations (NFE)": recipe.distill.nfe,
        **({"trained for NFE": ", ".join(map(str, settings.several_nfe))} if settings.several_nfe else {}),
        **({"trained in FP8": f"from {settings.fp8_from:.0%} on"} if settings.fp8_from is not None else {}),
        "guidance": f"{recipe.guidance:g}, {kind}",
        "shift": f"{recipe.shift:g}",
        "trained": f"{found.trained:,} parameters, {found.share:.2%} of the backbone's {found.backbone:,}: LoRA of "
        f"rank {recipe.student.rank}, {recipe.student.modes} modes",
    }
    data = ModelCardData(
        base_model=name if place else None,
        base_model_relation="adapter" if place else None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["text-to-image", "arcflow", "distillation", "few-step", _TAGS[recipe.architecture]],
        **licence,  # type: ignore[arg-type]
    )
    body = _BODY.format(
        title=adapter,
        paper=_PAPER,
        base=table["base"],
        nfe=recipe.distill.nfe,
        table="\n".join(f"| {key} | {value} |" for key, value in table.items()),
        pipeline=base.architecture.PIPELINE_CLASS,
        place=name,
        revision=f', revision="{place.revision}"' if place and place.revision else "",
        at=f"@{place.revision}" if place and place.revision else "",
        dtype="float32" if recipe.distill.frozen == "fp32" else "bfloat16",
        width=width,
        height=height,
        tokens=recipe.distill.text_tokens,
        adapter=adapter,
        model="tiny" if recipe.teacher is not None else recipe.architecture,
        licence=_said(licence),
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}"))


def _licence(base: Base) -> dict[str, str]:
    """``license``, ``license_name`` and ``license_link`` of the base's own card, as far as it names them."""
    from huggingface_hub import ModelCard

    path = find_card(base.place) if base.place else base.folder / CARD_FILE
    if path is None or not path.is_file():
        return {}
    try:
        data: dict[str, Any] = ModelCard.load(path).data.to_dict()
    except Exception:  # noqa: BLE001  # Whatever is wrong with somebody else's card, the adapter is written.
        return {}
    found = {key: str(data[key]) for key in ("license", "license_name", "license_link") if data.get(key)}
    link = found.get("license_link")
    if link and "://" not in link:  # A file of the base's repository.
        del found["license_link"]
        if base.place:
            found["license_link"] = f"{_HUB}/{base.place.repository}/blob/{base.place.revision or 'main'}/{link}"
    return found


def _said(licence: dict[str, str]) -> str:
    name = licence.get("license_name") or licence.get("license")
    if name is None:
        return (
            "The licence of the base holds for this adapter. It could not be found when this card was written: name it "
            "as `license` in the metadata above before you publish."
        )
    link = licence.get("license_link")
    return f"The licence of the base holds for this adapter: {f'[{name}]({link})' if link else f'`{name}`'}."


def _plain(source: str) -> str:
    """A hub id as it is, of a folder its name alone."""
    path = Path(source).expanduser()
    return path.resolve().name if path.exists() else source
