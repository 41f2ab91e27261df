"""The part ``solver`` on the stand-in device: its checks pass there, and each fails where a kernel is wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpu.kernels import checks
from gpu.kernels.fields import Size, random_field
from gpu.kernels.speed import AIM, closed_form, large_copy, measure
from runtime.cuda.interface import Advance, Unpack
from tests.gpu.recorder import Recorder
from tests.runtime.cuda.stand_in import StandInDevice


class _Wrong(StandInDevice):
    """Its solver leaves the state a little aside, and its other kernels do something else."""

    def advance(self, step: Advance) -> None:
        super().advance(replace(step, sigma_b=step.sigma_b + 1e-4))

    def normal(self, seed: int, count: int, out: int) -> None:
        super().normal(seed ^ 1, count, out)

    def unpack(self, work: Unpack) -> None:
        super().unpack(replace(work, shift=[value + 1 for value in work.shift]))

    def to_rgb8(self, images: int, pixels: int, shape: tuple[int, int, int]) -> None:
        super().to_rgb8(images + 16, pixels, shape)

    def find_nonfinite(self, values: int, count: int, found: int) -> None:
        super().find_nonfinite(values, count - 2, found)


class _Lazy(StandInDevice):
    """Its solver writes nothing."""

    def advance(self, step: Advance) -> None:
        return


def _check(device: StandInDevice) -> Recorder:
    emit = Recorder()
    checks.check_golden(emit, device)
    checks.check_odd(emit, device, "cpu")
    checks.check_sizes(emit, device, "cpu", (48,), (1, 2), ("float32", "bfloat16"))
    return emit


def test_right_kernels_pass() -> None:
    device = StandInDevice()
    emit = _check(device)
    checks.check_neighbours(emit, device)
    assert len(emit.records) == 8 and not emit.failed
    assert device.memory_used() == 0


@pytest.mark.parametrize("kind", [_Wrong, _Lazy])
def test_a_wrong_solver_fails_every_check(kind: type[StandInDevice]) -> None:
    emit = _check(kind())
    assert len(emit.failed) == len(emit.records) == 4


def test_wrong_neighbours_fail() -> None:
    emit = Recorder()
    checks.check_neighbours(emit, _Wrong())
    assert len(emit.failed) == 4


def test_speed_counts_the_bytes_and_keeps_out_of_the_cache() -> None:
    device, emit = StandInDevice(), Recorder()
    device.info = replace(device.info, l2_bytes=1 << 16)
    size = Size(256, 1, 16, 64, "float32")
    assert size.moved == 256 * (16 * 64 * 4 + 16 * 4 * 4 + 15 * 4 * 4 + 64 * 4 * 2)
    timing = measure(emit, device, size, rounds=2, best=large_copy(emit, device, 1 << 20, 2))
    large, record = emit.records
    assert record["share_of_large_copy"] == pytest.approx(size.moved / timing.median_s / large["rate"], abs=1e-3)
    assert record["bytes"] == size.moved and record["beyond_l2"]
    assert record["sets"] * size.moved >= 3 * device.info.l2_bytes
    assert record["held"] is (record["share_of_copy"] >= AIM)
    assert timing.how == record["copy"]["how"] == "replayed" and timing.median_s > 0
    assert device.memory_used() == 0


def test_flux_moves_what_the_kernels_readme_says() -> None:
    assert Size(4096, 1, 16, 64, "float32").moved == pytest.approx(20.9e6, rel=2e-3)


def test_torchs_solver_is_the_same_function() -> None:
    import torch

    field = random_field(Size(40, 1, 16, 64, "float32"), seed=3, where="cpu")
    levels = [torch.tensor(level) for level in checks.LEVELS[1]]
    moved = closed_form(field.means, field.logweights, field.loggammas, field.x, *levels)
    error, _ = checks.compare(moved[0].numpy(), field, checks.LEVELS[1])
    assert error < checks.TOLERANCE
