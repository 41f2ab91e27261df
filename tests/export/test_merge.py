"""Merging: equal to torch, and strict about everything that does not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from arcflow.adapter import merge_into, read_adapter
from arcflow.students import build_student
from export.merge import WEIGHTS_FILE, find_merged, merge, plan_merge
from foundation.errors import ArcFlowError
from tests.export.conftest import Sources

ADAPTER_FILE = "diffusion_pytorch_model.safetensors"
PARENTS = {"base": "1", "adapter": "2"}
Edit = Callable[[dict[str, Tensor]], object]


@pytest.fixture
def copy(sources: Sources, tmp_path: Path) -> Sources:
    """The sources' transformer and adapter, to be damaged."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(sources.base / "transformer", base / "transformer")
    shutil.copytree(sources.adapter, adapter)
    return Sources(base, adapter)


def edit(path: Path, change: Edit) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file({key: tensor.clone().contiguous() for key, tensor in tensors.items()}, path)


def run(sources: Sources, out: Path) -> dict[str, Tensor]:
    merged = merge(plan_merge(sources.base / "transformer", sources.adapter), out, PARENTS)
    return load_file(merged.folder / WEIGHTS_FILE)


def expected(sources: Sources) -> dict[str, Tensor]:
    teacher = load_file(sources.base / "transformer" / ADAPTER_FILE)
    adapter = read_adapter(sources.adapter)
    student = build_student(adapter.config.backbone, adapter.config.modes)
    return merge_into(student, teacher, adapter).state_dict()


def test_merged_is_what_torch_merges(sources: Sources, tmp_path: Path) -> None:
    merged, truth = run(sources, tmp_path / "out"), expected(sources)
    assert set(merged) == set(truth)
    for name, tensor in truth.items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-6, atol=1e-7)
    base = load_file(sources.base / "transformer" / ADAPTER_FILE)
    changed = [name for name in truth if name in base and not torch.equal(base[name], merged[name])]
    assert len(changed) > 5, "the adapter must have had a say"


def test_a_prefix_changes_nothing(copy: Sources, sources: Sources, tmp_path: Path) -> None:
    path = copy.adapter / ADAPTER_FILE
    save_file({f"transformer.{key}": tensor for key, tensor in load_file(path).items()}, path)
    prefixed, plain = run(copy, tmp_path / "a"), run(sources, tmp_path / "b")
    assert all(torch.equal(prefixed[name], plain[name]) for name in plain)


def test_a_sharded_base_merges_alike(copy: Sources, sources: Sources, tmp_path: Path) -> None:
    path = copy.base / "transformer" / ADAPTER_FILE
    tensors = load_file(path)
    path.unlink()
    names = sorted(tensors)
    homes = {name: f"model-{index % 3}.safetensors" for index, name in enumerate(names)}
    for home in set(homes.values()):
        save_file({name: tensors[name] for name in names if homes[name] == home}, path.with_name(home))
    path.with_name("diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": homes}))
    sharded, plain = run(copy, tmp_path / "a"), run(sources, tmp_path / "b")
    assert all(torch.equal(sharded[name], plain[name]) for name in plain)


def test_a_half_precision_base_keeps_its_type_and_is_merged_in_float32(copy: Sources, tmp_path: Path) -> None:
    path = copy.base / "transformer" / ADAPTER_FILE
    save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path)
    merged, truth = run(copy, tmp_path / "out"), expected(copy)
    name = "single_transformer_blocks.0.proj_mlp.weight"
    base, adapter = load_file(path)[name], read_adapter(copy.adapter).lora[name.removesuffix(".weight")]
    assert torch.equal(merged[name], (base.float() + adapter[1].float() @ adapter[0].float()).bfloat16())
    assert merged["proj_out.means.weight"].dtype == torch.float32
    assert set(merged) == set(truth)


def lora_key(tensors: dict[str, Tensor], half: str = "A") -> str:
    return next(key for key in sorted(tensors) if key.endswith(f".lora_{half}.weight"))


def _widen(tensors: dict[str, Tensor]) -> None:
    key = lora_key(tensors)
    tensors[key] = torch.cat([tensors[key]] * 2, dim=1)


def _poison(tensors: dict[str, Tensor], key: str, value: float = float("nan")) -> None:
    tensors[key].view(-1)[0] = value


def _rename_pair(tensors: dict[str, Tensor]) -> None:
    for half in "AB":
        tensors[f"no.such.module.lora_{half}.weight"] = tensors[lora_key(tensors, half)]


ADAPTER_FAULTS: dict[str, tuple[Edit, str]] = {
    "half a pair": (lambda t: t.pop(lora_key(t, "B")), "no matching"),
    "unknown key": (lambda t: t.update(surprise=torch.zeros(1)), "surprise"),
    "missing head": (lambda t: t.pop("proj_out_means.bias"), r"proj_out_means\.bias"),
    "homeless pair": (_rename_pair, r"no\.such\.module"),
    "another width": (_widen, r"lora_A\.weight has shape"),
    "another number of modes": (
        lambda t: t.update({"proj_out_means.bias": torch.zeros(5 * 16)}),
        r"proj_out_means\.bias has shape \[80\]",
    ),
    "NaN in a pair": (lambda t: _poison(t, lora_key(t)), r"lora_A\.weight has values that are not finite"),
    "NaN in the head": (lambda t: _poison(t, "proj_out_loggamma.weight"), r"proj_out_loggamma\.weight has values"),
    "whole numbers": (lambda t: t.update({"norm_out.linear.bias": torch.zeros(64, dtype=torch.int64)}), "I64"),
}


@pytest.mark.parametrize("fault", ADAPTER_FAULTS)
def test_a_faulty_adapter_is_refused(copy: Sources, tmp_path: Path, fault: str) -> None:
    change, message = ADAPTER_FAULTS[fault]
    edit(copy.adapter / ADAPTER_FILE, change)
    with pytest.raises(ArcFlowError, match=message):
        run(copy, tmp_path / "out")
    assert not list(tmp_path.glob("*out*")), "nothing half-written"


BASE_FAULTS: dict[str, tuple[Edit, str]] = {
    "unknown key": (lambda t: t.update(surprise=torch.zeros(1)), "unknown keys: surprise"),
    "missing key": (lambda t: t.pop("x_embedder.bias"), r"lacks x_embedder\.bias"),
    "another shape": (lambda t: t.update({"x_embedder.bias": torch.zeros(3)}), r"x_embedder\.bias has shape \[3\]"),
    "infinite value": (
        lambda t: _poison(t, "context_embedder.weight", float("inf")),
        r"context_embedder\.weight has values",
    ),
}


@pytest.mark.parametrize("fault", BASE_FAULTS)
def test_a_faulty_base_is_refused(copy: Sources, tmp_path: Path, fault: str) -> None:
    change, message = BASE_FAULTS[fault]
    edit(copy.base / "transformer" / ADAPTER_FILE, change)
    with pytest.raises(ArcFlowError, match=message):
        run(copy, tmp_path / "out")
    assert not list(tmp_path.glob("*out*")), "nothing half-written"


def test_overflow_in_the_base_type_is_refused(copy: Sources, tmp_path: Path) -> None:
    path = copy.base / "transformer" / ADAPTER_FILE
    save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path)
    edit(copy.adapter / ADAPTER_FILE, lambda t: t[lora_key(t, "B")].fill_(1e7))
    with pytest.raises(ArcFlowError, match=r"merging .* not finite in F16"):
        run(copy, tmp_path / "out")


def test_a_truncated_adapter_is_refused(copy: Sources, tmp_path: Path) -> None:
    path = copy.adapter / ADAPTER_FILE
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ArcFlowError, match="truncated"):
        run(copy, tmp_path / "out")


def test_a_verified_result_of_the_same_parents_is_reused(sources: Sources, tmp_path: Path) -> None:
    run(sources, tmp_path / "out")
    weights = tmp_path / "out" / WEIGHTS_FILE
    stamp = weights.stat().st_mtime_ns
    run(sources, tmp_path / "out")
    assert weights.stat().st_mtime_ns == stamp
    assert find_merged(tmp_path / "out", {"base": "another"}) is None
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert find_merged(tmp_path / "out", PARENTS) is None
    run(sources, tmp_path / "out")
    assert find_merged(tmp_path / "out", PARENTS) is not None
