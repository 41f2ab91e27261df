from __future__ import annotations

import pytest
import torch

from arcflow.evaluation.metrics import frechet_distance, paired_gain, pairwise_diversity, psnr_db, relative_l2


def test_relative_l2() -> None:
    reference = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    assert relative_l2(reference + torch.tensor([[0.0, 1.0], [0.5, 0.0]]), reference).tolist() == pytest.approx(
        [0.2, 0.5]
    )


def test_psnr_of_a_known_error() -> None:
    images = torch.zeros(1, 3, 4, 4)
    assert float(psnr_db(images + 0.2, images)) == pytest.approx(20.0, abs=1e-4)


def test_frechet_of_gaussians_is_the_formula() -> None:
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(40000, 3, generator=g), torch.randn(40000, 3, generator=g) * 2.0 + 1.0
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-6)
    assert frechet_distance(a, b) == pytest.approx(3.0 + 3.0, rel=0.03)  # |1|^2 * 3 + (2 - 1)^2 * 3


def test_diversity_counts_pairs_of_one_prompt_only() -> None:
    features = torch.tensor([[0.0], [3.0], [100.0], [101.0]])
    assert pairwise_diversity(features, torch.tensor([0, 0, 1, 1])) == pytest.approx(2.0)
    assert pairwise_diversity(features, torch.tensor([0, 1, 2, 3])) == 0.0


def test_paired_gain() -> None:
    gain = paired_gain(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([2.0, 4.0, 3.5, 3.5]))
    assert gain["mean"] == pytest.approx(0.75) and gain["won"] == 0.75
    assert gain["relative"] == pytest.approx(0.75 / 3.25)
    assert gain["standard_error"] == pytest.approx(torch.tensor([1.0, 2.0, 0.5, -0.5]).std().item() / 2)
