"""``python -m arcflow.info``: the counts of the paper come out, and nothing is allocated for them."""

from __future__ import annotations

import json
import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from arcflow import info
from arcflow.adapter import WEIGHTS_FILE, Policy, read_adapter, save_adapter
from arcflow.evaluation.compare import trained_fraction
from arcflow.needs.inventory import Inventory, meta_backbone, take_inventory
from arcflow.recipe import load_recipe
from arcflow.students import Student
from foundation.cli import run

ROOT = Path(__file__).parents[2]


def figures(recipe: str, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    assert run(info.main, ["--recipe", recipe, "--json"]) == 0
    data: dict[str, object] = json.loads(capsys.readouterr().out)
    return data


COUNTS = {
    "flux": (11_901_408_320, 573_656_188, 0.0482, 154),
    "flux-krea": (11_901_408_320, 573_656_188, 0.0482, 154),
    "flux-released": (11_901_408_320, 652_405_884, 0.0548, 154),
    "qwen": (20_430_401_088, 843_402_364, 0.0413, 240),
    "qwen-2512": (20_430_401_088, 843_402_364, 0.0413, 240),
    "qwen-released": (20_430_401_088, 960_687_228, 0.0470, 240),
}
"""Backbone, trained, share, adapted linears. Released: 652.4 M of 11.9 B and 960.7 M of 20.4 B are published."""


@pytest.mark.parametrize("name", COUNTS)
def test_the_counts_of_the_full_size_recipes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    backbone, trained, share, linears = COUNTS[name]
    data = figures(name, capsys)
    assert (data["backbone_parameters"], data["trained_parameters"]) == (backbone, trained)
    assert (data["trained_share"], data["adapted_linears"]) == (pytest.approx(share, abs=5e-5), linears)
    assert data["lora_parameters"] + data["head_parameters"] + data["norm_out_parameters"] == trained  # type: ignore[operator]
    assert data["adapter_bytes_bf16"] == 2 * trained
    assert data["sigmas"] == pytest.approx([1.0, 0.7619047619, 0.0])
    if not name.endswith("-released"):
        assert share < 0.05 and data["rank"] <= data["largest_rank_under_5_percent"]  # type: ignore[operator]


def test_no_memory_is_taken_for_a_backbone() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    take_inventory(load_recipe("qwen"))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 256 * 1024, "KiB"
    assert {p.device.type for p in meta_backbone(load_recipe("flux")).parameters()} == {"meta"}


def test_the_largest_rank_is_the_last_under_the_limit() -> None:
    recipe = load_recipe("flux")
    largest = take_inventory(recipe).largest_rank

    def share(rank: int) -> float:
        inventory = take_inventory(replace(recipe, student=replace(recipe.student, rank=rank)))
        assert inventory.largest_rank == largest
        return inventory.share

    assert share(largest) < 0.05 <= share(largest + 1)
    assert Inventory(recipe, backbone=1000, lora=224 * 10, head=10, norm_out=10, linears=1).largest_rank == 2
    assert Inventory(recipe, backbone=1000, lora=224 * 10, head=50, norm_out=10, linears=1).largest_rank == 0


def test_tiny_is_what_its_committed_adapter_holds(capsys: pytest.CaptureFixture[str]) -> None:
    data = figures("tiny", capsys)
    adapter = read_adapter(ROOT / "models" / "tiny" / "adapter")
    assert data["trained_share"] == pytest.approx(trained_fraction(adapter, meta_backbone(load_recipe("tiny"))))
    assert data["base"] is None and data["guidance_kind"] == "embedded"


def test_the_bytes_are_those_of_a_saved_adapter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = small_recipe(tmp_path)
    recipe = load_recipe(str(path))
    backbone = meta_backbone(recipe).to_empty(device="cpu")
    student = Student(backbone, recipe.student, "qwen")
    save_adapter(student, recipe.backbone or {}, Policy(3.2, 4.0), tmp_path / "adapter", torch.bfloat16)
    weights = (tmp_path / "adapter" / WEIGHTS_FILE).read_bytes()
    header = 8 + int.from_bytes(weights[:8], "little")
    assert len(weights) - header == figures(str(path), capsys)["adapter_bytes_bf16"]


def small_recipe(folder: Path, extra: str = "") -> Path:
    path = folder / "small.toml"
    path.write_text(
        'extends = "qwen"\nname = "small"\n[student]\nrank = 2\nmodes = 3\n[backbone]\nnum_layers = 2\n'
        f"in_channels = 16\nout_channels = 4\nattention_head_dim = 16\nnum_attention_heads = 2\n"
        f"axes_dims_rope = [4, 6, 6]\n{extra}"
    )
    return path


def test_the_table_shows_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(info.main, ["--recipe", "flux"]) == 0
    shown = capsys.readouterr().out
    for text in ("551,247,872", "573,656,188", "4.82%", "11,901,408,320", "1,147,312,376 bytes", "0.761905", "232"):
        assert text in shown


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        info.main(["--help"])
    assert stop.value.code == 0
    assert "python -m arcflow.info --recipe flux" in capsys.readouterr().out


BAD = {
    "unknown key": ("heads = 3\n", "unknown key 'backbone.heads'"),
    "type": ("joint_attention_dim = 'wide'\n", "describes no qwen transformer"),
    "editing model": ("zero_cond_t = true\n", "zero_cond_t"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_backbone_is_one_line_and_exit_2(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    extra, words = BAD[what]
    assert run(info.main, ["--recipe", str(small_recipe(tmp_path, extra))]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and words in captured.err


def test_an_unknown_recipe_is_one_line_and_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(info.main, ["--recipe", "huge"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "flux-released" in message
