"""Which card a bundle will fit, said before it is built: from headers and the shapes that its plans take."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.memory.card import ALLOWANCE, CardMemory
from export.assembling.estimate import estimate_card
from export.assembling.inputs import Build, inspect
from export.assembling.wanted import Wanted
from export.precision import Precision
from export.sources.models import choose
from export.students.subject import Subject, open_subject
from export.tensorrt.profiles import choose_shapes
from tests.export.pipelines import small_flux, small_qwen


@pytest.fixture(scope="module", params=["flux", "qwen"])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    make = {"flux": small_flux, "qwen": small_qwen}[request.param]
    found = make(tmp_path_factory.mktemp(request.param))
    return open_subject(choose(request.param), str(found.base), str(found.adapter))


def asked(
    subject: Subject, target: str, sizes: str = "512x512", batch: str = "1", precision: Precision = Precision.BF16,
    only: tuple[str, ...] = (),
) -> Build:  # fmt: skip
    spec = subject.spec
    shapes = choose_shapes(spec.limits, sizes, batch)
    root = Path("nowhere")
    return inspect(
        Wanted(spec=spec, precision=precision, target=target, out=root, workdir=root, shapes=shapes, only=only), subject
    )


def estimated(build: Build) -> CardMemory:
    found = estimate_card(build)
    assert found is not None
    return found


def test_weights_are_those_of_the_networks_and_the_rest_follows_from_shapes(subject: Subject) -> None:
    build = asked(subject, "sm89")
    memory = estimated(build)
    assert memory.basis == "estimate"
    assert memory.networks == {task.name: 2 * task.parameters for task in build.tasks}
    assert memory.working > 0
    assert memory.low_vram < memory.resident
    wider = estimated(asked(subject, "sm89", "512x512,1024x256", "1-2"))
    assert wider.networks == memory.networks
    assert wider.working > 2 * memory.working


def test_other_types_of_other_bytes(subject: Subject) -> None:
    bf16, fp32, fp8 = (
        estimated(asked(subject, "sm89", precision=p)) for p in (Precision.BF16, Precision.FP32, Precision.FP8)
    )
    for name, size in bf16.networks.items():
        assert fp32.networks[name] == 2 * size
    assert fp8.networks["backbone"] < bf16.networks["backbone"]
    assert fp32.working > 1.5 * bf16.working


def test_for_a_cpu_fp16_is_half_of_fp32_in_every_network(subject: Subject) -> None:
    for precision, itemsize in ((Precision.FP32, 4), (Precision.FP16, 2)):
        build = asked(subject, "cpu", precision=precision)
        assert all(task.bytes_high == itemsize * task.parameters for task in build.tasks)
        assert {task.compute for task in build.tasks} == {"float32"}


def test_portable_networks_are_weights_alone(subject: Subject) -> None:
    memory, plans = estimated(asked(subject, "onnx")), estimated(asked(subject, "sm89"))
    assert memory.networks == plans.networks
    assert memory.basis == "weights"
    assert memory.resident == sum(plans.networks.values()) + ALLOWANCE
    assert memory.resident < plans.resident


def test_nothing_is_said_of_a_part_or_for_a_cpu(subject: Subject) -> None:
    assert estimate_card(asked(subject, "sm89", only=("backbone",))) is None
    assert estimate_card(asked(subject, "cpu", precision=Precision.FP32)) is None


def test_a_network_has_no_weights_that_it_does_not_use(subject: Subject) -> None:
    """Files of text encoders and VAEs hold more than encoding text and decoding take."""
    import torch

    for task in asked(subject, "sm89").tasks:
        with torch.device("meta"):
            module = task.network.build(torch.bfloat16)
        names = [name.removeprefix("network.") for name, _ in module.named_parameters(remove_duplicate=False)]
        assert {task.network.weight_key(name) for name in names} == set(task.network.weights), task.name
