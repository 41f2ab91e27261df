"""Twins: small, of the same make, fit for the same code, and a function of the seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.fullsize.shapes import published
from export import architectures
from export.assembling.attach import attach_inline
from export.assembling.graph import finish, trace
from export.assembling.parity import LIMITS, check_parity
from export.assembling.twin import make_twin
from export.errors import ExportError, WeightsError
from export.weights.merge import merge
from foundation.files import sha256_tree

SET_BY_THE_CLASS = {"is_encoder_decoder", "tie_word_embeddings", "torch_dtype", "transformers_version", "use_cache"}
SMALLEST = {"flux": "clip", "qwen": "text"}


def write_configs(name: str, folder: Path) -> tuple[Path, Path]:
    """The published model's configuration files, and nothing else."""
    for path, content in published(name).files.items():
        file = folder / path if path.startswith("adapter/") else folder / "base" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
    return folder / "base", folder / "adapter"


@pytest.fixture(scope="module", params=SMALLEST)
def twin(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    root = tmp_path_factory.mktemp(request.param)
    make_twin(*write_configs(request.param, root / "published"), root / "twin", seed=3)
    return request.param, root / "twin"


def networks(name: str, folder: Path) -> dict[str, Any]:
    architecture = architectures.choose(name)
    student = merge(folder / "base" / "transformer", folder / "adapter")
    assert student.modes == 16
    return {n: architecture.network(n, folder / "base", student) for n in architecture.parts}


def test_only_what_repeats_is_smaller(twin: tuple[str, Path]) -> None:
    name, folder = twin
    model = published(name)
    for component in model.components:
        was, now = model.config(component), json.loads((folder / "base" / component / "config.json").read_text())
        for key in was:
            if isinstance(was[key], bool | str) and key in now and key[0] != "_" and key not in SET_BY_THE_CLASS:
                assert now[key] == was[key], (component, key)
    now = json.loads((folder / "base" / "transformer" / "config.json").read_text())
    assert (now["attention_head_dim"], list(now["axes_dims_rope"]), now["in_channels"]) == (128, [16, 56, 56], 64)
    assert now["num_layers"] < 4
    assert now["num_attention_heads"] == 2
    assert sum(file.stat().st_size for file in folder.rglob("*.safetensors")) < 32 << 20


def test_every_network_of_a_twin_runs_at_a_sane_scale(twin: tuple[str, Path]) -> None:
    """Means, gates, gammas, images and encodings are of order one: an error of one percent is one percent."""
    for network in networks(*twin).values():
        sizes = network.parity_sizes[0]
        reference = network.reference()
        with torch.no_grad():
            outputs = reference(**network.examples(sizes, torch.Generator().manual_seed(0)))
        for port, output in zip(network.ports_out, outputs, strict=True):
            assert output.isfinite().all()
            assert 0.05 < output.std() < 20, (network.name, port)


def test_a_twin_goes_through_the_exporter(twin: tuple[str, Path]) -> None:
    name, folder = twin
    network = networks(name, folder)[SMALLEST[name]]
    model = trace(network, "bfloat16", 23)
    attach_inline(model, network)
    results = check_parity(network, finish(model, network), "bf16", "bfloat16")
    assert [result.limit for result in results] == [LIMITS["bf16"]] * 3


def test_the_seed_decides(tmp_path: Path) -> None:
    sources = write_configs("flux", tmp_path)
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_twin(*sources, tmp_path / folder, seed)
    first, same, other = (sha256_tree(tmp_path / folder) for folder in "abc")
    assert first == same != other


def test_what_cannot_be_twinned_is_refused(tmp_path: Path) -> None:
    base, adapter = write_configs("flux", tmp_path)
    with pytest.raises(WeightsError, match="there is no"):
        make_twin(tmp_path / "nowhere", adapter, tmp_path / "twin", 0)
    (base / "transformer" / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    with pytest.raises(ExportError, match="no twin can be made of a UNet2DConditionModel; allowed: FluxTransformer2D"):
        make_twin(base, adapter, tmp_path / "twin", 0)
    assert not (tmp_path / "twin").exists()
