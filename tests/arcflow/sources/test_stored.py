"""Frozen weights stored in FP8: the product of the widened weight, without keeping it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from arcflow.adapter import trained_tensors
from arcflow.errors import BackboneError
from arcflow.recipe import StudentRecipe
from arcflow.sources.base import find_base
from arcflow.sources.fp8 import from_codes, quantise_rows
from arcflow.sources.stored import Fp8Linear, as_frozen, store_linears
from arcflow.sources.weights import open_backbone
from arcflow.students import Student, lora_module_names
from tests.export.pipelines import small_flux, small_qwen

FAMILIES = {"flux": small_flux, "qwen": small_qwen}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, FAMILIES[request.param](tmp_path_factory.mktemp(request.param)).base


def stored(bias: bool = True) -> Fp8Linear:
    torch.manual_seed(1)
    return Fp8Linear(nn.Linear(96, 160, bias=bias).bfloat16().requires_grad_(False))


def widened(layer: Fp8Linear) -> nn.Linear:
    """The plain linear of what is stored."""
    plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None).requires_grad_(False)
    plain.weight.data = from_codes(layer.weight, layer.weight_scale, torch.bfloat16)
    plain.bias = layer.bias
    return plain


def passed(module: Callable[[Tensor], Tensor], x: Tensor, autocast: bool = True) -> tuple[list[Tensor], list[Any]]:
    """The result and the gradient of ``x``; type and shape of what was kept for the backward."""
    x, kept = x.clone().requires_grad_(), list[Any]()

    def keep(tensor: Tensor) -> Tensor:
        kept.append((tensor.dtype, tuple(tensor.shape)))
        return tensor

    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), saved_tensors_hooks(keep, lambda tensor: tensor):
        result = module(x)
    result.float().square().sum().backward()
    assert x.grad is not None
    return [result.detach(), x.grad], kept


def equal(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
def test_it_is_the_linear_of_what_is_stored_to_the_bit(bias: bool, autocast: bool) -> None:
    layer, x = stored(bias), torch.randn(2, 5, 96).to(torch.float32 if autocast else torch.bfloat16)
    ours, kept = passed(layer, x, autocast)
    theirs, plainly = passed(widened(layer), x, autocast)
    assert equal(ours, theirs)
    assert (torch.bfloat16, (160, 96)) in plainly or (torch.bfloat16, (96, 160)) in plainly
    assert kept == [(torch.float8_e4m3fn, (160, 96)), (torch.float32, (160, 1))]


def test_without_autocast_it_computes_in_the_inputs_type() -> None:
    layer, x = stored(), torch.randn(3, 96)
    found, _ = passed(layer, x, autocast=False)
    weight = from_codes(layer.weight, layer.weight_scale)
    assert torch.equal(found[0], functional.linear(x, weight, layer.bias.float()))


def test_the_gradient_is_the_derivative() -> None:
    layer = stored()
    assert torch.autograd.gradcheck(layer, torch.randn(2, 96, dtype=torch.float64, requires_grad=True))


def test_a_compiled_block_keeps_no_widened_weight_either() -> None:
    block = nn.Sequential(stored(), nn.GELU(), Fp8Linear(nn.Linear(160, 96).bfloat16().requires_grad_(False)))
    x = torch.randn(2, 7, 96)
    ours, kept = passed(torch.compile(block, backend="aot_eager", fullgraph=True), x)
    assert equal(ours, passed(block, x)[0])
    assert not [shape for dtype, shape in kept if shape in ((160, 96), (96, 160)) and dtype != torch.float8_e4m3fn]


def test_running_a_block_again_changes_nothing() -> None:
    block = nn.Sequential(stored(), nn.GELU(), Fp8Linear(nn.Linear(160, 96).bfloat16().requires_grad_(False)))
    x = torch.randn(2, 7, 96)
    assert equal(passed(lambda x: checkpoint(block, x, use_reentrant=False), x)[0], passed(block, x)[0])


def test_some_rows_are_stored_as_in_the_whole() -> None:
    weight = torch.randn(7, 40, dtype=torch.bfloat16) * torch.logspace(-6, 4, 7, dtype=torch.bfloat16)[:, None]
    weight[3] = 0
    codes, scales = quantise_rows(weight)
    for rows in (slice(0, 4), slice(4, 7), slice(7, 7)):
        some, theirs = quantise_rows(weight[rows])
        assert some.dtype == torch.float8_e4m3fn and torch.equal(some.float(), codes[rows].float())
        assert theirs.shape == (len(some), 1) and torch.equal(theirs, scales[rows])
    back = from_codes(codes, scales)
    assert not back[3].any()
    error = torch.linalg.vector_norm(back - weight, dim=1) / torch.linalg.vector_norm(weight.float(), dim=1)
    assert error[error.isfinite()].max() < 0.04 and len(error[error.isfinite()]) == 6


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_said_and_where(value: float) -> None:
    backbone = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(4, 4)])})
    backbone.get_submodule("blocks.0").weight.data[2, 1] = value  # type: ignore[union-attr]
    with pytest.raises(BackboneError, match=r"blocks\.0\.weight has values that are not finite; download"):
        store_linears(backbone)


def test_the_blocks_linears_alone_are_stored_with_values_or_without(family: tuple[str, Path]) -> None:
    base = find_base(family[1], family[0])
    blank = as_frozen(base.blank(), "fp8")
    filled = open_backbone(base, "fp8", torch.device("cpu"))
    for backbone in (blank, filled):
        linears = {n: type(m) for n, m in backbone.named_modules() if isinstance(m, nn.Linear)}
        assert {n for n, kind in linears.items() if kind is Fp8Linear} == {n for n in linears if "blocks." in n}
        assert {"norm_out.linear", "proj_out", "time_text_embed.timestep_embedder.linear_1"} < linears.keys()
        others = {p.dtype for n, p in backbone.named_parameters() if not n.endswith("_scale")}
        assert others == {torch.bfloat16, torch.float8_e4m3fn}
        assert not any(p.requires_grad for p in backbone.parameters())
    described, found = blank.state_dict(), filled.state_dict()
    assert [(k, v.shape, v.dtype) for k, v in described.items()] == [(k, v.shape, v.dtype) for k, v in found.items()]
    for file in (family[1] / "transformer").glob("*.safetensors"):
        for name, tensor in load_file(file).items():
            if f"{name}_scale" in found:
                codes, scales = quantise_rows(tensor)
                assert torch.equal(found[name].float(), codes.float()) and torch.equal(found[f"{name}_scale"], scales)
    blank.load_state_dict(found, assign=True)
    for name, tensor in blank.state_dict().items():
        assert torch.equal(tensor.view(torch.uint8), found[name].view(torch.uint8)), name


def test_a_student_of_it_starts_with_the_lora_of_any_other(family: tuple[str, Path]) -> None:
    base = find_base(family[1], family[0])
    made = []
    for frozen in ("bf16", "fp8"):
        backbone = open_backbone(base, frozen, torch.device("cpu"))
        assert lora_module_names(backbone, base.architecture) == lora_module_names(base.blank(), base.architecture)
        torch.manual_seed(5)
        made.append(Student(backbone, StudentRecipe(rank=4, modes=3), family[0]))
    tensors = [trained_tensors(student) for student in made]
    assert tensors[0].keys() == tensors[1].keys()
    for name, tensor in tensors[0].items():
        assert tensors[1][name].dtype == torch.float32 and torch.equal(tensor, tensors[1][name]), name
    trained = {id(tensor) for tensor in tensors[1].values()}
    assert {id(p) for p in made[1].parameters() if p.requires_grad} == trained
    moved = copy.deepcopy(made[1].backbone).to("cpu")
    assert {p.dtype for p in moved.parameters()} == {torch.float32, torch.bfloat16, torch.float8_e4m3fn}
