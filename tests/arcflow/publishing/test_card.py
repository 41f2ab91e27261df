"""Model cards: what the hub reads of them, the licence of the base, and the example that they show."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, constants

from arcflow.adapter import CARD_FILE, Policy, read_adapter, save_adapter
from arcflow.publishing.card import model_card
from arcflow.recipe import load_recipe
from arcflow.sources.base import Base, find_base
from arcflow.sources.hub import HubSource, parse_id
from arcflow.sources.weights import empty_backbone, fill
from arcflow.students import Student, architecture
from tests.export.pipelines import small_flux

OTHER = {"license": "other", "license_name": "own-terms", "license_link": "LICENSE.md"}


def card_of(name: str, place: HubSource | None, folder: Path = Path("nowhere"), **more: Any) -> ModelCard:
    recipe = load_recipe(name)
    base = Base(folder, architecture(recipe.architecture), recipe.backbone or {}, 8, place)
    return ModelCard(model_card(recipe, base, "owner/two-steps", **more))


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, of the library's layout and empty; nothing is asked for over the network."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def put_card(cache: Path, repository: str, text: str) -> None:
    root, commit = cache / f"models--{repository.replace('/', '--')}", "0" * 40
    (root / "snapshots" / commit).mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)
    (root / "snapshots" / commit / CARD_FILE).write_text(text)


def front(entries: dict[str, str]) -> str:
    return "---\n" + "".join(f"{key}: {value}\n" for key, value in entries.items()) + "---\n# Base\n"


def test_the_card_of_a_student_of_krea(offline: Path) -> None:
    place = parse_id("black-forest-labs/FLUX.1-Krea-dev")
    assert place is not None
    put_card(offline, place.repository, front(OTHER))
    card = card_of("flux-krea", place)
    found = card.data.to_dict()
    assert found["base_model"] == place.repository and found["base_model_relation"] == "adapter"
    assert found["library_name"] == "diffusers" and found["pipeline_tag"] == "text-to-image"
    assert {"text-to-image", "arcflow", "flux"} <= set(found["tags"])
    link = f"https://huggingface.co/{place.repository}/blob/main/LICENSE.md"
    assert {key: found[key] for key in OTHER} == {**OTHER, "license_link": link}
    for row in (
        "| recipe | `flux-krea` |", "| iterations | 10,000, batch 16 |", "| network evaluations (NFE) | 2 |",
        "| guidance | 4.5, an input of the backbone |", "| shift | 3.2 |", "| started from | the base |",
        "573,656,188 parameters, 4.82% of the backbone's 11,901,408,320: LoRA of rank 224, 16 modes",
        f"[own-terms]({link})", f"--model flux --base {place.repository} --adapter owner/two-steps",
    ):  # fmt: skip
        assert row in card.text


def test_without_the_base_s_card_the_licence_is_left_to_the_user(offline: Path) -> None:
    card = card_of("qwen-2512", parse_id("Qwen/Qwen-Image-2512@v1"))
    assert "license" not in card.data.to_dict() and "name it as `license` in the metadata" in card.text
    assert 'from_pretrained("Qwen/Qwen-Image-2512", revision="v1", dtype=torch.bfloat16)' in card.text
    assert "| guidance | 4, built in |" in card.text and "--base Qwen/Qwen-Image-2512@v1 " in card.text


@pytest.mark.parametrize("text", ["no metadata", "---\n: [\n---\n", "---\n- a list\n---\n", "---\nlicense: {\n---\n"])
def test_a_base_whose_card_cannot_be_read(text: str, tmp_path: Path) -> None:
    (tmp_path / CARD_FILE).write_text(text)
    assert "license" not in card_of("flux", None, tmp_path).data.to_dict()


def test_folders_are_named_without_their_paths(tmp_path: Path) -> None:
    (tmp_path / "start").mkdir()
    (tmp_path / CARD_FILE).write_text(front(OTHER))
    card = card_of("flux", None, tmp_path, start=str(tmp_path / "start"), weights="last")
    found = card.data.to_dict()
    assert "base_model" not in found and (found["license_name"], found.get("license_link")) == ("own-terms", None)
    assert "| started from | `start` |" in card.text and "| weights | those of the last iteration |" in card.text
    assert str(tmp_path.parent) not in str(card) and f"`{tmp_path.name}`" in card.text


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    small_flux(tmp_path)
    base = find_base(str(tmp_path / "base"), "flux")
    recipe = load_recipe("flux")
    distill = replace(recipe.distill, sizes=("48x32",), text_tokens=16)
    recipe = replace(recipe, distill=distill, student=replace(recipe.student, rank=2, modes=3))
    backbone = empty_backbone(base, "fp32")
    fill(backbone, base, torch.device("cpu"))
    student = Student(backbone, recipe.student)
    save_adapter(student, base.config, Policy(3.2, 3.5), tmp_path / "mine", card=model_card(recipe, base, "mine"))
    read_adapter(tmp_path / "mine")
    (program,) = re.findall(r"```python\n(.*?)```", (tmp_path / "mine" / CARD_FILE).read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(program.replace("cuda", "cpu"), names)
    assert names["image"].size == (48, 32)


def test_the_card_says_what_else_a_student_was_trained_for(offline: Path) -> None:
    assert "trained" not in str(card_of("flux", None)).split("| trained |")[0].split("| base |")[1]
    recipe = load_recipe("flux")
    recipe = replace(recipe, distill=replace(recipe.distill, several_nfe=(1, 2, 4), fp8_from=0.7))
    base = Base(Path("nowhere"), architecture("flux"), recipe.backbone or {}, 8, None)
    card = model_card(recipe, base, "owner/several")
    assert "| trained for NFE | 1, 2, 4 |" in card and "| trained in FP8 | from 70% on |" in card
