"""What the exporter knows of each architecture as a whole: networks, folders, latent, shapes, style LoRAs."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from engines.schema import NETWORKS, Limits, Range
from export.architectures import flux, qwen
from export.assembling.parity import relative_error
from export.errors import ExportError
from export.weights.lora import LoraTensors, StyleLora
from export.weights.merge import merged_student, plan_merge
from tests.export.pipelines import MODES, Sources, small_flux, small_qwen

SMALL = {flux: small_flux, qwen: small_qwen}
LAYERS = {
    flux: ("transformer_blocks.1.attn.to_q", "single_transformer_blocks.0.proj_out"),
    qwen: ("transformer_blocks.1.attn.to_q", "transformer_blocks.0.txt_mlp.net.2"),
}


@pytest.fixture(scope="module", params=[flux, qwen], ids=lambda module: module.NAME)
def architecture(request: pytest.FixtureRequest) -> ModuleType:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def sources(architecture: Any, tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return SMALL[architecture](tmp_path_factory.mktemp(architecture.NAME))


def test_every_network_of_the_manifest_has_a_folder_and_a_description(architecture: Any, sources: Sources) -> None:
    assert sorted(architecture.NETWORKS) == sorted(NETWORKS[architecture.NAME]) == sorted(architecture.FOLDERS)
    student = merged_student(plan_merge(sources.base / "transformer", sources.adapter), "base", "adapter")
    for name in architecture.NETWORKS:
        network = architecture.network(name, sources.base, student, sources.adapter)
        assert network.name == name
        assert (sources.base / architecture.FOLDERS[name]).is_dir()
        assert len(network.parity_sizes) == 3
        assert len(network.weights) > 0


def test_ranges_follow_the_limits(architecture: Any, sources: Sources) -> None:
    limits = Limits(Range(1, 2, 4), Range(128, 256, 512), Range(64, 256, 256), Range(1, 64, 77), 16)
    ranges = architecture.dimensions(limits, architecture.latent(sources.base))
    assert ranges == {
        "batch": Range(1, 2, 4),
        "text_tokens": Range(1, 64, 77),
        "image_tokens": Range(8 * 4, 16 * 16, 32 * 16),
        "rows": Range(8, 32, 32),
        "columns": Range(16, 32, 64),
    }


def test_the_latent_is_normalised_as_the_vae_says(sources: Sources, architecture: Any) -> None:
    config = json.loads((sources.base / "vae" / "config.json").read_text())
    latent = architecture.latent(sources.base)
    z = torch.randn(16)
    scaled = z / torch.tensor(latent.scaling_factor) + torch.tensor(latent.shift_factor)
    if architecture is qwen:
        wanted = z * torch.tensor(config["latents_std"]) + torch.tensor(config["latents_mean"])
        assert len(latent.scaling_factor) == len(latent.shift_factor) == 16
    else:
        wanted = z / config["scaling_factor"] + config["shift_factor"]
    torch.testing.assert_close(scaled, wanted)
    assert (latent.channels, latent.patch, latent.vae_factor) == (16, 2, 8)


def test_the_reference_gets_style_loras_apart_from_the_merge(architecture: Any, sources: Sources) -> None:
    generator = torch.Generator().manual_seed(5)
    transformer = sources.base / "transformer"
    plain = merged_student(plan_merge(transformer, sources.adapter), "base", "adapter")
    factors, modules = {}, {}
    for layer in (*LAYERS[architecture], "proj_out"):
        head = layer == "proj_out"
        rows, columns = plain.weights["proj_out.means.weight" if head else f"{layer}.weight"].shape
        modules[layer] = (f"{layer}.lora_A.weight", f"{layer}.lora_B.weight")
        factors[modules[layer][0]] = torch.randn(2, columns, generator=generator) / columns**0.5
        factors[modules[layer][1]] = torch.randn(rows // MODES if head else rows, 2, generator=generator)
    lora = StyleLora("0" * 64, 0.7, LoraTensors(Path("style"), factors), modules)
    student = merged_student(plan_merge(transformer, sources.adapter, [lora]), "base", "adapter")
    network = architecture.network("backbone", sources.base, student, sources.adapter, [lora])
    module: Any = network.build(torch.float32).eval()
    weights = {name: student.weights.rows_float32(name, 0, info.shape[0]) for name, info in student.weights.items()}
    module.network.load_state_dict(weights)
    inputs = network.examples(network.parity_sizes[1], generator)
    without = architecture.network("backbone", sources.base, student, sources.adapter)
    with torch.no_grad():
        found, truth, before = module(**inputs), network.reference()(**inputs), without.reference()(**inputs)
    assert max(map(relative_error, found, truth)) < 1e-5
    assert relative_error(before[0], truth[0]) > 1e-2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latents_std": None}, "lacks latents_std"),
        ({"latents_mean": [0.0] * 3}, "latents_mean has 3 values, there are 16 channels"),
        ({"latents_std": [0.0] * 16}, "latents_std has a value that is not positive"),
    ],
)
def test_a_vae_that_is_another_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    (tmp_path / "vae").mkdir()
    config = {"z_dim": 16, "temperal_downsample": [False, True, True]} | {
        key: [1.0] * 16 for key in ("latents_mean", "latents_std")
    }
    kept = {key: value for key, value in (config | change).items() if value is not None}
    (tmp_path / "vae" / "config.json").write_text(json.dumps(kept))
    with pytest.raises(ExportError, match=message):
        qwen.latent(tmp_path)
