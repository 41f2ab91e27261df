"""The scheduler alone: noise levels, the closed form, what it rejects."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from arcflow.architectures import flux, qwen
from arcflow.errors import PipelineError
from arcflow.field import MomentumField, displacement
from arcflow.pipelines.noise import image_noise
from arcflow.pipelines.scheduler import ArcFlowScheduler
from arcflow.schedule import sigmas

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "noise.json").read_text(encoding="utf-8"))


def field(seed: int = 0) -> MomentumField:
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(2, 6, 3, 8, generator=generator)
    gates = torch.log_softmax(torch.randn(2, 6, 3, 4, generator=generator), dim=-2)
    return MomentumField(means, gates, torch.randn(2, 6, 2, 4, generator=generator))


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_levels_are_the_methods_whatever_a_pipeline_passes(steps: int) -> None:
    scheduler = ArcFlowScheduler(shift=3.2, nfe=2, final_step_ratio=0.5)
    wanted = torch.tensor(sigmas(steps, 3.2, 0.5))
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=0.9, device="cpu")
    assert torch.equal(scheduler.sigmas, wanted) and len(scheduler.timesteps) == steps
    scheduler.set_timesteps(steps)
    assert torch.equal(scheduler.sigmas, wanted)
    scheduler.set_timesteps()
    assert len(scheduler.timesteps) == 2


@pytest.mark.parametrize("arch", [flux, qwen], ids=["flux", "qwen"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_transformer_is_told_the_level_that_it_saw_in_training(arch: ModuleType, dtype: torch.dtype) -> None:
    """A pipeline casts the time to its dtype and divides it by 1000, in that dtype."""
    scheduler = ArcFlowScheduler()
    for steps in range(1, 9):
        scheduler.set_timesteps(steps)
        wanted = arch.as_trained(scheduler.sigmas[:-1], "bfloat16")
        told = (scheduler.timesteps.to(dtype) / 1000).float()
        assert torch.equal(arch.as_trained(told, "bfloat16"), wanted), steps


def test_a_compiler_leaves_the_rounding_as_it_is() -> None:
    """TorchInductor takes a cast there and back for nothing; it compiles C++ here."""
    from arcflow.pipelines.students import _as_trained

    levels = torch.tensor(sigmas(8, 3.2)[:-1])
    compiled = torch.compile(lambda x: _as_trained(x * 1.0, "flux", "bfloat16") * 1000.0, fullgraph=True)
    assert torch.equal(compiled(levels), flux.as_trained(levels, "bfloat16") * 1000.0)


def test_float32_conditioning_is_not_rounded() -> None:
    scheduler = ArcFlowScheduler(conditioning_dtype="float32")
    torch.testing.assert_close(scheduler.timesteps, scheduler.sigmas[:-1] * 1000, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_is_the_closed_form_in_float32(dtype: torch.dtype) -> None:
    scheduler = ArcFlowScheduler()
    scheduler.set_timesteps(2)
    x, levels = torch.randn(2, 6, 8).to(dtype), sigmas(2, 3.2)
    for step, time in enumerate(scheduler.timesteps):
        there = scheduler.step(field(step), time, x, return_dict=False)[0]
        wanted = x.float() + displacement(field(step), levels[step], levels[step], levels[step + 1])
        assert there.dtype == dtype and torch.equal(there, wanted.to(dtype))
        x = there
    assert scheduler.step_index == 2
    with pytest.raises(PipelineError, match="set_timesteps"):
        scheduler.step(field(), time, x)


def test_a_run_may_begin_later() -> None:
    told, found = ArcFlowScheduler(nfe=4), ArcFlowScheduler(nfe=4)
    told.set_begin_index(2)
    x = torch.randn(2, 6, 8)
    one = told.step(field(), told.timesteps[2], x).prev_sample
    assert torch.equal(one, found.step(field(), found.timesteps[2].bfloat16(), x).prev_sample)


def test_noise_is_mixed_in_up_to_a_steps_level() -> None:
    scheduler = ArcFlowScheduler()
    x, noise = torch.randn(2, 6, 8), torch.randn(2, 6, 8)
    level = sigmas(2, 3.2)[1]
    there = scheduler.scale_noise(x, scheduler.timesteps[1:], noise)
    torch.testing.assert_close(there, (1 - level) * x + level * noise)
    assert torch.equal(scheduler.scale_noise(x, scheduler.timesteps[:1].repeat(2), noise), noise)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.set_timesteps(sigmas=[1.0, 0.3]), "leave out sigmas"),
        (lambda s: s.set_timesteps(0), "at least 1"),
        (lambda s: s.step(torch.zeros(2, 6, 8), 1000.0, torch.zeros(2, 6, 8)), "load_student"),
    ],
)
def test_what_is_no_students_is_one_clear_error(call: object, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        call(ArcFlowScheduler())  # type: ignore[operator]


def test_a_pipelines_own_number_of_steps_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="num_inference_steps=2"):
        ArcFlowScheduler().set_timesteps(28)


def test_saved_and_opened(tmp_path: Path) -> None:
    ArcFlowScheduler(shift=1.7, nfe=3, conditioning_dtype="float32", guidance=2.0).save_pretrained(tmp_path)
    config = ArcFlowScheduler.from_pretrained(tmp_path).config
    assert (config.shift, config.nfe, config.conditioning_dtype, config.guidance) == (1.7, 3, "float32", 2.0)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"seed {case['seed']}")
def test_noise_is_that_of_every_runtime(case: dict[str, object]) -> None:
    first = image_noise(int(str(case["seed"])), 8, 4)
    assert first.shape == (1, 8, 4) and first.flatten().tolist() == case["values"][:32]  # type: ignore[index]


@pytest.mark.parametrize("seed", [-1, 1 << 64])
def test_a_seed_out_of_range(seed: int) -> None:
    with pytest.raises(PipelineError, match="2\\^64"):
        image_noise(seed, 1, 1)
