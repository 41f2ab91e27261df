"""pi-Flow's mixture: its posterior mean against quadrature, its rollout, its start as the teacher, gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from arcflow.rivals.mixture import Mixture, MixtureHead


def mixture(std: float = 0.3, substeps: int = 64, modes: int = 3) -> Mixture:
    """One token of four positions with a channel each, so that each position is a mixture on the line."""
    g = torch.Generator().manual_seed(5)
    return Mixture(
        torch.randn(1, 1, modes, 4, generator=g, dtype=torch.float64),
        torch.randn(1, 1, modes, 4, generator=g, dtype=torch.float64).log_softmax(dim=2),
        torch.full((1,), math.log(std), dtype=torch.float64),
        1.7,
        substeps,
    )


def posterior_mean(field: Mixture, x_src: float, src: float, x: float, sigma: float, position: int) -> float:
    """E[x0 | x, x_src] by quadrature, from Bayes' rule alone."""
    clean = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    mu = x_src - src * field.means[0, 0, :, position]
    std = float(field.logstds.exp()) * src
    prior = torch.stack(
        [
            weight.exp() * torch.exp(-0.5 * ((clean - centre) / std) ** 2)
            for weight, centre in zip(field.logweights[0, 0, :, position], mu, strict=True)
        ]
    ).sum(dim=0)

    def loglikelihood(state: float, level: float) -> Tensor:
        return -0.5 * ((state - (1 - level) * clean) / level) ** 2

    logs = prior.log() + loglikelihood(x, sigma) - loglikelihood(x_src, src)
    weights = torch.exp(logs - logs.max())
    return float((weights * clean).sum() / weights.sum())


@pytest.mark.parametrize(("src", "sigma"), [(1.0, 0.7), (1.0, 0.05), (0.63, 0.6), (0.63, 0.2)])
def test_the_velocity_is_that_of_the_posterior_mean(src: float, sigma: float) -> None:
    field = mixture()
    x_src = torch.tensor([[[0.3, -1.1, 0.8, 0.0]]], dtype=torch.float64)
    x = x_src * 0.8 + 0.1
    found = field.motion(x_src, src).velocity(x, sigma)
    for position in range(4):
        mean = posterior_mean(field, float(x_src[0, 0, position]), src, float(x[0, 0, position]), sigma, position)
        assert float(found[0, 0, position]) == pytest.approx((float(x[0, 0, position]) - mean) / sigma, rel=1e-6)


def test_at_its_start_it_is_the_mean_of_the_modes() -> None:
    field, x = mixture(), torch.randn(1, 1, 4, dtype=torch.float64)
    wanted = (field.logweights.exp() * field.means).sum(dim=2)
    torch.testing.assert_close(field.motion(x, 0.7).velocity(x, 0.7), wanted)


def test_the_rollout_solves_the_equation() -> None:
    x = torch.tensor([[[0.3, -1.1, 0.8, 0.0]]], dtype=torch.float64)
    truth = mixture(substeps=8192).motion(x, 1.0).displacement(x, 1.0, 0.2)
    errors = [
        float((mixture(substeps=n).motion(x, 1.0).displacement(x, 1.0, 0.2) - truth).abs().max()) for n in (64, 128)
    ]
    assert errors[1] < 0.03
    assert errors[0] / errors[1] == pytest.approx(2.0, abs=0.2), "Euler's steps are of first order"


def test_narrow_equal_modes_move_as_the_teacher_does() -> None:
    torch.manual_seed(1)
    proj_out, features = nn.Linear(6, 8), torch.randn(2, 3, 6)
    head = MixtureHead(proj_out, modes=4, bias_std=0.0, shift=1.7, substeps=32)
    predicted, x = head(features), torch.randn(2, 3, 8)
    moved = predicted.motion(x, 1.0).displacement(x, 1.0, 0.5)
    torch.testing.assert_close(moved, -0.5 * proj_out(features), rtol=0.03, atol=0.03)
    assert predicted.modes == 4 and predicted.means.shape == (2, 3, 4, 8)


def test_mean_velocity_and_dropped_modes() -> None:
    field, x = mixture(), torch.randn(1, 1, 4, dtype=torch.float64)
    motion = field.motion(x, 0.9)
    torch.testing.assert_close(motion.mean_velocity(x, 0.9, 0.4) * -0.5, motion.displacement(x, 0.9, 0.4))
    torch.testing.assert_close(motion.mean_velocity(x, 0.6, 0.6), motion.velocity(x, 0.6))
    keep = torch.tensor([True, False, False])[None, None, :, None]
    alone = field.drop_modes(keep)
    torch.testing.assert_close(alone.motion(x, 0.9).velocity(x, 0.9), field.means[:, :, 0])


def test_gradients_reach_every_part_and_are_right() -> None:
    field, x = mixture(substeps=4), torch.randn(1, 1, 4, dtype=torch.float64)
    parts = [t.clone().requires_grad_() for t in (field.means, field.logweights, field.logstds)]

    def moved(means: Tensor, logweights: Tensor, logstds: Tensor) -> Tensor:
        return Mixture(means, logweights, logstds, 1.7, 4).motion(x, 1.0).displacement(x, 1.0, 0.3)

    assert torch.autograd.gradcheck(moved, parts)
    moved(*parts).square().sum().backward()
    assert all(part.grad is not None and bool(part.grad.abs().sum() > 0) for part in parts)
