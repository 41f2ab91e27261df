"""Parity: its measure, its limits, and that it notices one weight that is wrong."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from engines.bundle import open_bundle
from export.errors import ParityError
from export.networks.t5 import t5_network
from export.parity import LIMITS, check_parity, parity_table, relative_error
from tests.export.conftest import Built


def test_the_limit_of_fp32_is_a_ten_thousandth() -> None:
    assert LIMITS["fp32"] == 1e-4


def test_relative_error() -> None:
    truth = torch.tensor([3.0, 4.0])
    assert relative_error(truth, truth) == 0.0
    assert relative_error(torch.tensor([3.0, 4.5]), truth) == pytest.approx(0.1)
    assert relative_error(torch.tensor([0.0, 0.5]), torch.zeros(2)) == 0.5
    assert relative_error(torch.zeros(0), torch.zeros(0)) == 0.0
    assert math.isinf(relative_error(torch.tensor([math.nan, 4.0]), truth))
    assert math.isinf(relative_error(torch.zeros(3), truth))


def test_every_network_was_measured_at_three_shapes_and_holds(built: Built) -> None:
    parity = open_bundle(built.bundle).manifest.parity
    for name in ("clip", "t5", "backbone", "vae_decoder"):
        results = [result for result in parity if result.network == name]
        assert len({tuple(sorted(result.shape.items())) for result in results}) == 3
        assert all(0 < result.relative_error <= result.limit == LIMITS["fp32"] for result in results)
    assert parity_table(parity).row_count == 12


@pytest.mark.parametrize("value", [0.01, math.nan])
def test_one_wrong_weight_is_noticed(built: Built, value: float) -> None:
    network = t5_network(built.sources.base / "text_encoder_2")
    model = onnx.load(built.bundle / "t5.onnx")
    tensor = next(t for t in model.graph.initializer if t.name.endswith("wi_0.weight"))
    array = numpy_helper.to_array(tensor).copy()
    array[0] += np.float32(value)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    with pytest.raises(ParityError, match="t5 differs from the original by"):
        check_parity(network, model.SerializeToString(), "fp32")
