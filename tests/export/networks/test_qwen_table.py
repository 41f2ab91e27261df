"""Qwen-Image's table of modulation: its levels are those that runtimes feed, its rows what the weights would give."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
import torch

from arcflow.architectures.conditioning import ConditioningDtype
from arcflow.schedule import sigmas
from export.assembling.graph import trace
from export.networks.qwen_backbone import levels_of, qwen_backbone_network
from export.networks.qwen_student import qwen_student_network
from export.weights.merge import MergedStudent
from runtime.architectures.conditioning import to_bfloat16
from tests.export.qwen_export import Exported

MAX_NFE = 3


@pytest.fixture(scope="module")
def student(exported_qwen: Exported) -> MergedStudent:
    return exported_qwen.student


@pytest.mark.parametrize("trained", ["float32", "bfloat16"])
@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_every_schedule_finds_its_levels(student: MergedStudent, trained: ConditioningDtype, ratio: float) -> None:
    """To the bit, as the runtime feeds them."""
    policy = dataclasses.replace(student.policy, conditioning_dtype=trained, final_step_ratio=ratio)
    levels = levels_of(dataclasses.replace(student, policy=policy), 8)
    assert list(levels) == sorted(set(levels), reverse=True)
    asked = [level for nfe in range(1, 9) for level in sigmas(nfe, policy.shift, ratio)[:-1]]
    fed = np.asarray(asked, dtype=np.float32)
    assert set((fed if trained == "float32" else to_bfloat16(fed)).tolist()) == set(levels)


def test_the_table_stands_in_for_all_that_the_level_decides(student: MergedStudent, exported_qwen: Exported) -> None:
    folder = exported_qwen.sources.base / "transformer"
    whole, cut = qwen_student_network(folder, student), qwen_backbone_network(folder, student, MAX_NFE)
    gone = set(whole.weights) - set(cut.weights)
    assert {name.rsplit(".", 1)[0] for name in gone} == {
        *(f"transformer_blocks.{block}.{stream}_mod.1" for block in range(3) for stream in ("img", "txt")),
        *(f"time_text_embed.timestep_embedder.linear_{number}" for number in (1, 2)),
        "norm_out.linear",
    }
    made = set(cut.weights) - set(whole.weights)
    assert made == {"modulation_table.levels", "modulation_table.rows"}
    assert cut.weights["modulation_table.rows"].shape == (len(cut.levels), (3 * 2 * 6 + 2) * 64)
    blank = {n: v for n, v in trace(cut, "bfloat16", 23).graph.initializers.items() if v.const_value is None}
    assert made <= set(blank)
    assert blank["modulation_table.levels"].dtype == ir.DataType.FLOAT, "levels are told apart in float32"
    assert blank["modulation_table.rows"].dtype == ir.DataType.BFLOAT16


def test_its_rows_are_what_the_weights_give(student: MergedStudent, exported_qwen: Exported) -> None:
    folder = exported_qwen.sources.base / "transformer"
    cut = qwen_backbone_network(folder, student, MAX_NFE)
    table = cut.weights.read("modulation_table.rows")
    module = qwen_student_network(folder, student).reference()
    network = module.network  # type: ignore[attr-defined]
    with torch.no_grad():
        embedded = network.time_text_embed(torch.tensor(cut.levels), torch.empty(0))
        wanted = torch.cat(
            [
                *(mod(embedded) for block in network.transformer_blocks for mod in (block.img_mod, block.txt_mod)),
                network.norm_out.linear(torch.nn.functional.silu(embedded)),
            ],
            dim=1,
        )
    np.testing.assert_allclose(table.numpy(), wanted.numpy(), rtol=1e-4, atol=1e-5)
    some = cut.weights.rows_float32("modulation_table.rows", 1, 3)
    some.zero_()
    assert cut.weights.rows_float32("modulation_table.rows", 1, 3).abs().sum() > 0, "a caller may change what it got"
