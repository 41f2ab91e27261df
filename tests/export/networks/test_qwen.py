"""What the exporter knows of each architecture as a whole: networks, folders, latent, shapes, style LoRAs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from engines.schema import NETWORKS
from export.architectures.base import Architecture
from export.architectures.flux import FLUX
from export.architectures.qwen import QWEN
from export.assembling.parity import relative_error
from export.errors import ExportError
from export.weights.lora import LoraTensors, StyleLora
from export.weights.merge import merge
from tests.export.pipelines import MODES, Sources, small_flux, small_qwen

SMALL = {"flux": small_flux, "qwen": small_qwen}
LAYERS = {
    "flux": ("transformer_blocks.1.attn.to_q", "single_transformer_blocks.0.proj_out"),
    "qwen": ("transformer_blocks.1.attn.to_q", "transformer_blocks.0.txt_mlp.net.2"),
}


@pytest.fixture(scope="module", params=[FLUX, QWEN], ids=lambda each: each.name)
def architecture(request: pytest.FixtureRequest) -> Architecture:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def sources(architecture: Architecture, tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return SMALL[architecture.name](tmp_path_factory.mktemp(architecture.name))


def test_every_network_of_the_manifest_is_described(architecture: Architecture, sources: Sources) -> None:
    assert sorted(architecture.parts) == sorted(NETWORKS[architecture.name])
    student = merge(sources.base / "transformer", sources.adapter)
    for name in architecture.parts:
        network = architecture.network(name, sources.base, student)
        assert network.name == name
        assert (sources.base / architecture.parts[name].folder).is_dir()
        assert len(network.parity_sizes) == 3
        assert len(network.weights) > 0


def test_the_latent_is_normalised_as_the_vae_says(sources: Sources, architecture: Architecture) -> None:
    config = json.loads((sources.base / "vae" / "config.json").read_text())
    latent = architecture.latent(sources.base)
    z = torch.randn(16)
    scaled = z / torch.tensor(latent.scaling_factor) + torch.tensor(latent.shift_factor)
    if architecture is QWEN:
        wanted = z * torch.tensor(config["latents_std"]) + torch.tensor(config["latents_mean"])
        assert len(latent.scaling_factor) == len(latent.shift_factor) == 16
    else:
        wanted = z / config["scaling_factor"] + config["shift_factor"]
    torch.testing.assert_close(scaled, wanted)
    assert (latent.channels, latent.patch, latent.vae_factor) == (16, 2, 8)


def test_the_reference_gets_style_loras_apart_from_the_merge(architecture: Architecture, sources: Sources) -> None:
    generator = torch.Generator().manual_seed(5)
    transformer = sources.base / "transformer"
    plain = merge(transformer, sources.adapter)
    factors, modules = {}, {}
    for layer in (*LAYERS[architecture.name], "proj_out"):
        head = layer == "proj_out"
        rows, columns = plain.weights["proj_out.means.weight" if head else f"{layer}.weight"].shape
        modules[layer] = (f"{layer}.lora_A.weight", f"{layer}.lora_B.weight")
        factors[modules[layer][0]] = torch.randn(2, columns, generator=generator) / columns**0.5
        factors[modules[layer][1]] = torch.randn(rows // MODES if head else rows, 2, generator=generator)
    lora = StyleLora("0" * 64, 0.7, LoraTensors(Path("style"), factors), modules)
    student = merge(transformer, sources.adapter, [lora])
    network = architecture.network("backbone", sources.base, student)
    module: Any = network.build(torch.float32).eval()
    weights = {name: network.weights.rows_float32(name, 0, info.shape[0]) for name, info in network.weights.items()}
    module.network.load_state_dict(weights)
    inputs = network.examples(network.parity_sizes[1], generator)
    without = architecture.network("backbone", sources.base, plain)
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
        QWEN.latent(tmp_path)
