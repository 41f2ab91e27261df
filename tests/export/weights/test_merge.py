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
from arcflow.errors import AdapterError
from arcflow.students import build_student
from export.build import main as build
from export.weights import files as weights
from export.weights.merge import MergedStudent, merge
from foundation.cli import run as run_command
from foundation.errors import ArcFlowError
from tests.export.conftest import MODES, Sources

ADAPTER_FILE = "diffusion_pytorch_model.safetensors"
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


def merged(sources: Sources) -> MergedStudent:
    return merge(sources.base / "transformer", sources.adapter)


def run(sources: Sources) -> dict[str, Tensor]:
    student = merged(sources)
    return {name: student.weights.read(name) for name in student.weights}


def expected(sources: Sources) -> dict[str, Tensor]:
    teacher = load_file(sources.base / "transformer" / ADAPTER_FILE)
    adapter = read_adapter(sources.adapter)
    student = build_student(adapter.config.backbone, adapter.config.modes)
    return merge_into(student, teacher, adapter).state_dict()


def test_merged_is_what_torch_merges(sources: Sources) -> None:
    merged, truth = run(sources), expected(sources)
    assert set(merged) == set(truth)
    for name, tensor in truth.items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-6, atol=1e-7)
    base = load_file(sources.base / "transformer" / ADAPTER_FILE)
    changed = [name for name in truth if name in base and not torch.equal(base[name], merged[name])]
    assert len(changed) > 5, "the adapter must have had a say"


def test_a_prefix_changes_nothing(copy: Sources, sources: Sources) -> None:
    path = copy.adapter / ADAPTER_FILE
    save_file({f"transformer.{key}": tensor for key, tensor in load_file(path).items()}, path)
    prefixed, plain = run(copy), run(sources)
    assert all(torch.equal(prefixed[name], plain[name]) for name in plain)


def test_a_sharded_base_merges_alike(copy: Sources, sources: Sources) -> None:
    path = copy.base / "transformer" / ADAPTER_FILE
    tensors = load_file(path)
    path.unlink()
    names = sorted(tensors)
    homes = {name: f"model-{index % 3}.safetensors" for index, name in enumerate(names)}
    for home in set(homes.values()):
        save_file({name: tensors[name] for name in names if homes[name] == home}, path.with_name(home))
    path.with_name("diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": homes}))
    sharded, plain = run(copy), run(sources)
    assert all(torch.equal(sharded[name], plain[name]) for name in plain)


def test_a_half_precision_base_keeps_its_type_and_is_merged_in_float32(copy: Sources) -> None:
    path = copy.base / "transformer" / ADAPTER_FILE
    save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path)
    merged, truth = run(copy), expected(copy)
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


def _turn(tensors: dict[str, Tensor], *, swap: bool) -> None:
    """Every pair the wrong way about: A and B swapped, or each transposed."""
    for a in [key for key in tensors if key.endswith(".lora_A.weight")]:
        b = a.replace("lora_A", "lora_B")
        tensors[a], tensors[b] = (tensors[b], tensors[a]) if swap else (tensors[a].T, tensors[b].T)


def _deepen(tensors: dict[str, Tensor]) -> None:
    key = lora_key(tensors)
    tensors[key] = torch.cat([tensors[key]] * 2)


def drop_pairs(tensors: dict[str, Tensor], share: float = 1.0) -> None:
    names = sorted(key for key in tensors if ".lora_" in key)
    for key in names[: 2 * round(share * len(names) / 2)]:
        del tensors[key]


ADAPTER_FAULTS: dict[str, tuple[Edit, str]] = {
    "half a pair": (lambda t: t.pop(lora_key(t, "B")), "no matching"),
    "unknown key": (lambda t: t.update(surprise=torch.zeros(1)), "surprise"),
    "missing head": (lambda t: t.pop("proj_out_means.bias"), r"proj_out_means\.bias"),
    "homeless pair": (_rename_pair, r"no\.such\.module"),
    "another width": (_widen, r"lora_A\.weight has shape"),
    "another number of modes": (
        lambda t: t.update({"proj_out_means.bias": torch.zeros(5 * 16)}),
        r"proj_out_means\.bias has shape \[80\] .*config\.json gives another number of modes",
    ),
    "factors swapped": (
        lambda t: _turn(t, swap=True),
        r"lora_B\.weight .* are swapped or transposed; A must be \[rank",
    ),
    "factors transposed": (lambda t: _turn(t, swap=False), "are swapped or transposed; A must be"),
    "two ranks": (_deepen, r"differ in rank \(\d+ and \d+\); A must be .*; train or save it again"),
    "half of the pairs": (
        lambda t: drop_pairs(t, 0.5),
        r"lacks the LoRA pairs of .* and \d+ more \(\d of the \d+ layers",
    ),
    "one pair": (
        lambda t: [t.pop(f"time_text_embed.timestep_embedder.linear_2.lora_{half}.weight") for half in "AB"],
        r"lacks the LoRA pairs of time_text_embed\.timestep_embedder\.linear_2 \(1 of the \d+ layers .* add --partial",
    ),
    "no pair": (drop_pairs, r"lacks the LoRA pairs of .* \((\d+) of the \1 layers"),
    "NaN in a pair": (lambda t: _poison(t, lora_key(t)), r"lora_A\.weight has values that are not finite"),
    "NaN in the head": (lambda t: _poison(t, "proj_out_loggamma.weight"), r"proj_out_loggamma\.weight has values"),
    "whole numbers": (lambda t: t.update({"norm_out.linear.bias": torch.zeros(64, dtype=torch.int64)}), "I64"),
}


@pytest.mark.parametrize("fault", ADAPTER_FAULTS)
def test_a_faulty_adapter_is_refused(copy: Sources, fault: str) -> None:
    change, message = ADAPTER_FAULTS[fault]
    edit(copy.adapter / ADAPTER_FILE, change)
    with pytest.raises(ArcFlowError, match=message):
        run(copy)


def test_an_adapter_may_lack_pairs_where_that_is_meant(copy: Sources) -> None:
    edit(copy.adapter / ADAPTER_FILE, lambda t: drop_pairs(t, 0.5))
    weights = merge(copy.base / "transformer", copy.adapter, coverage="partial").weights
    teacher = load_file(copy.base / "transformer" / ADAPTER_FILE)
    adapter = read_adapter(copy.adapter)
    student = build_student(adapter.config.backbone, adapter.config.modes)
    for name, tensor in merge_into(student, teacher, adapter, "partial").state_dict().items():
        torch.testing.assert_close(weights.read(name), tensor, rtol=1e-6, atol=1e-7)
    with pytest.raises(AdapterError, match="lacks the LoRA pairs"):
        merge_into(build_student(adapter.config.backbone, adapter.config.modes), teacher, adapter)


def test_a_build_of_an_adapter_that_lacks_pairs(
    sources: Sources, copy: Sources, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(copy.adapter / ADAPTER_FILE, lambda t: drop_pairs(t, 0.5))
    options = ["--base", str(sources.base), "--adapter", str(copy.adapter), "--only", "vae_decoder"]
    options += ["--workdir", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    assert run_command(build, options) == 2
    error = capsys.readouterr().err
    assert "lacks the LoRA pairs of" in error
    assert len(error.splitlines()) == 1
    assert run_command(build, [*options, "--partial", "--only", "backbone"]) == 0


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
def test_a_faulty_base_is_refused(copy: Sources, fault: str) -> None:
    change, message = BASE_FAULTS[fault]
    edit(copy.base / "transformer" / ADAPTER_FILE, change)
    with pytest.raises(ArcFlowError, match=message):
        run(copy)


def test_overflow_in_the_base_type_is_refused(copy: Sources) -> None:
    path = copy.base / "transformer" / ADAPTER_FILE
    save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path)
    edit(copy.adapter / ADAPTER_FILE, lambda t: t[lora_key(t, "B")].fill_(1e7))
    with pytest.raises(ArcFlowError, match=r"merging .* not finite in F16, .*; the adapter's factors are too large"):
        run(copy)


def test_factors_that_are_too_large_are_the_adapters(copy: Sources) -> None:
    for half in "AB":
        edit(copy.adapter / ADAPTER_FILE, lambda t, half=half: t[lora_key(t, half)].fill_(1e30))  # type: ignore[misc]
    with pytest.raises(
        ArcFlowError, match=r"not finite in F32; the adapter's factors are too large: train or download"
    ):
        run(copy)


@pytest.mark.parametrize("place", ["base", "adapter"])
def test_weights_that_are_pickles_are_named(copy: Sources, place: str) -> None:
    folder = copy.base / "transformer" if place == "base" else copy.adapter
    (folder / ADAPTER_FILE).rename(folder / "diffusion_pytorch_model.bin")
    with pytest.raises(ArcFlowError, match=r"; diffusion_pytorch_model\.bin there is a pickle, which may hold code"):
        run(copy)


def test_a_truncated_adapter_is_refused(copy: Sources) -> None:
    path = copy.adapter / ADAPTER_FILE
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ArcFlowError, match="truncated"):
        run(copy)


def shard(folder: Path, count: int = 3) -> list[Path]:
    """Split the single weights file of a folder into shards with their index."""
    path = folder / ADAPTER_FILE
    tensors = load_file(path)
    path.unlink()
    homes = {name: f"model-{index % count}.safetensors" for index, name in enumerate(sorted(tensors))}
    for home in set(homes.values()):
        save_file({name: tensors[name] for name in tensors if homes[name] == home}, folder / home)
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": homes}))
    return sorted(folder.glob("model-*.safetensors"))


def test_a_missing_shard_is_named(copy: Sources) -> None:
    shard(copy.base / "transformer")[1].unlink()
    with pytest.raises(ArcFlowError, match=r"no weights file .*model-1\.safetensors; download"):
        run(copy)


def test_a_truncated_shard_is_named(copy: Sources) -> None:
    path = shard(copy.base / "transformer")[1]
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ArcFlowError, match=r"model-1\.safetensors is truncated"):
        run(copy)


def test_a_shard_that_is_cut_while_it_is_read_is_named(copy: Sources) -> None:
    path = shard(copy.base / "transformer")[1]
    student = merged(copy)
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(ArcFlowError, match=r"model-1\.safetensors was cut"):
        [student.weights.read(name) for name in student.weights]


def configure(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


BASE_CONFIGS: dict[str, tuple[dict[str, object], str]] = {
    "another architecture": (
        {"_class_name": "QwenImageTransformer2DModel"},
        "holds a QwenImageTransformer2DModel, the adapter is for a FluxTransformer2DModel",
    ),
    "no guidance": ({"guidance_embeds": False}, "guidance_embeds is False, the adapter was trained with True"),
    "more layers": ({"num_layers": 3}, "num_layers is 3, the adapter was trained with 1"),
    "no backbone": ({"num_attention_heads": None}, "does not describe a backbone"),
}


@pytest.mark.parametrize("fault", BASE_CONFIGS)
def test_another_base_than_the_adapters_is_refused(copy: Sources, fault: str) -> None:
    values, message = BASE_CONFIGS[fault]
    configure(copy.base / "transformer" / "config.json", **values)
    with pytest.raises(ArcFlowError, match=message):
        merged(copy)


def test_planning_reads_no_tensor(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Tensor:
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(weights.TensorFile, "read", fail)
    student = merged(sources)
    assert student.weights.size > 0
    assert (student.architecture, student.modes) == ("flux", MODES)
    assert student.policy is not None
    assert student.policy.shift == 1.7


def test_rows_in_any_runs_are_those_of_the_whole(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(sources)
    monkeypatch.setattr(weights, "CHUNK", 1000)
    student = merged(sources)
    for name, tensor in whole.items():
        runs = list(weights.row_chunks(tuple(tensor.shape)))
        rows = torch.cat([student.weights.rows_float32(name, *bounds) for bounds in runs])
        torch.testing.assert_close(rows, tensor, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(student.weights.read(name), tensor, rtol=1e-6, atol=1e-7)
    assert len(list(weights.row_chunks((64, 64)))) > 1, "the runs must have been short"


def test_rows_in_float32_were_never_rounded_to_the_bases_type(copy: Sources) -> None:
    path = copy.base / "transformer" / ADAPTER_FILE
    save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path)
    name = "single_transformer_blocks.0.proj_mlp.weight"
    base, (a, b) = load_file(path)[name], read_adapter(copy.adapter).lora[name.removesuffix(".weight")]
    student = merged(copy)
    rows = student.weights.rows_float32(name, 0, base.shape[0])
    torch.testing.assert_close(rows, base.float() + b.float() @ a.float(), rtol=1e-6, atol=1e-7)
    assert not torch.equal(rows, rows.bfloat16().float())
    assert student.weights[name].dtype == "BF16"


def test_a_students_digest_is_that_of_what_it_is_made_of(sources: Sources) -> None:
    student = merge(sources.base / "transformer", sources.adapter)
    digests = {student.digested(*parents).digest for parents in (("a", "b"), ("a", "c"), ("c", "b"), ("a", "b"))}
    assert len(digests) == 3
    assert all(len(digest) == 64 for digest in digests)
