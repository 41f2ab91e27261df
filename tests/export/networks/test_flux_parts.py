"""FLUX's conditioner and backbone: together the whole student, and no weight of the backbone without the latent."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import torch

from export.assembling.graph import trace
from export.networks.base import Network
from export.networks.flux_backbone import flux_backbone_network
from export.networks.flux_conditioner import flux_conditioner_network
from export.networks.flux_student import flux_student_network
from export.weights.merge import MergedStudent, merge
from tests.export.pipelines import Sources


@pytest.fixture(scope="module")
def student(sources: Sources) -> MergedStudent:
    return merge(sources.base / "transformer", sources.adapter)


@pytest.fixture(scope="module")
def networks(sources: Sources, student: MergedStudent) -> dict[str, Network]:
    describe = (flux_conditioner_network, flux_backbone_network, flux_student_network)
    conditioner, backbone, whole = (one(sources.base / "transformer", student) for one in describe)
    return {"conditioner": conditioner, "backbone": backbone, "whole": whole}


def test_every_weight_is_one_part_s(networks: dict[str, Network]) -> None:
    conditioner, backbone = set(networks["conditioner"].weights), set(networks["backbone"].weights)
    assert conditioner | backbone == set(networks["whole"].weights)
    assert not conditioner & backbone
    for name in ("conditioner", "backbone"):
        blank = {n for n, v in trace(networks[name]).graph.initializers.items() if v.const_value is None}
        assert blank == set(networks[name].weights)


def test_the_parts_compute_what_the_whole_does(networks: dict[str, Network]) -> None:
    """Several images at several noise levels: the conditioner once, with a row a noise level of each image."""
    conditioner, backbone, whole = (networks[name].reference() for name in ("conditioner", "backbone", "whole"))
    generator = torch.Generator().manual_seed(0)
    inputs = networks["whole"].examples({"batch": 2, "image_tokens": 12, "rows": 3, "text_tokens": 5}, generator)
    latents, levels = inputs.pop("hidden_states"), torch.tensor([1.0, 0.76, 0.5])
    inputs.pop("timestep")
    rows = {
        "timestep": levels.repeat_interleave(2),
        "guidance": inputs["guidance"].repeat(3),
        "pooled_projections": inputs["pooled_projections"].repeat(3, 1),
    }
    with torch.no_grad():
        made = dict(zip(networks["conditioner"].ports_out, conditioner(**{**inputs, **rows}), strict=True))
        modulation = made.pop("modulation").unflatten(0, (3, 2))
        for level, columns in zip(levels, modulation, strict=True):
            found = backbone(hidden_states=latents, modulation=columns, **made)
            wanted = whole(hidden_states=latents, timestep=level.expand(2), **inputs)
            for one, other in zip(found, wanted, strict=True):
                assert float((one - other).norm() / other.norm()) <= 2e-6


def _weights_without(model: ir.Model, port: str) -> set[str]:
    """Weights that meet what other inputs hold, but not what ``port`` holds (sizes do not count)."""
    weights = {value: {str(value.name)} for value in model.graph.initializers.values() if value.const_value is None}
    inputs = {value: value.name == port for value in model.graph.inputs}
    found: set[str] = set()
    for node in model.graph:
        given = [value for value in node.inputs if value is not None]
        met = [inputs[value] for value in given if value in inputs]
        own = set[str]().union(*(weights.get(value, ()) for value in given))
        if not met:
            weights.update(dict.fromkeys(node.outputs, own))
        elif node.op_type not in ("Shape", "Size"):
            inputs.update(dict.fromkeys(node.outputs, any(met)))
            found |= set() if any(met) else own
    return found


def test_every_weight_of_the_backbone_meets_the_latent(networks: dict[str, Network]) -> None:
    """But those of the text stream up to its first attention: what they give is larger than what they are."""
    found = _weights_without(trace(networks["backbone"], "bfloat16", 23), "hidden_states")
    attention = "transformer_blocks.0.attn."
    assert found
    assert all(name.startswith((f"{attention}add_", f"{attention}norm_added_")) for name in found)
    whole = _weights_without(trace(networks["whole"], "bfloat16", 23), "hidden_states")
    assert whole == found | set(networks["conditioner"].weights)
