"""The three networks of Qwen-Image: their graphs against diffusers and transformers, at small random configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from engines.schema import Limits, Range
from export.architectures.qwen import QWEN
from export.assembling.graph import FORBIDDEN_TYPES
from export.assembling.parity import check_parity
from export.errors import ExportError
from export.networks.qwen_student import Rope
from export.networks.qwen_text import _Rope as TextRope
from export.networks.qwen_text import qwen_text_network
from export.networks.qwen_vae_decoder import FrameWeights
from export.weights.files import open_folder
from tests.export.pipelines import CAPTIONS, MODES
from tests.export.qwen_export import Exported

PORTS: dict[str, tuple[dict[str, list[Any]], dict[str, list[Any]]]] = {
    "text": (
        {"input_ids": ["batch", "text_tokens"], "attention_mask": ["batch", "text_tokens"]},
        {"sequence": ["batch", "text_tokens", 64]},
    ),
    "backbone": (
        {
            "hidden_states": ["batch", "image_tokens", 64],
            "encoder_hidden_states": ["batch", "text_tokens", 64],
            "encoder_hidden_states_mask": ["batch", "text_tokens"],
            "timestep": ["batch"],
            "img_ids": ["image_tokens", 3],
            "txt_ids": ["text_tokens"],
        },
        {
            "means": ["batch", "image_tokens", MODES, 64],
            "logweights": ["batch", "image_tokens", MODES, 4],
            "loggammas": ["batch", "image_tokens", MODES - 1, 4],
        },
    ),
    "vae_decoder": (
        {"latents": ["batch", 16, "rows", "columns"]},
        {"images": ["batch", 3, "8*rows", "8*columns"]},
    ),
}
UNUSED = {f"transformer_blocks.2.{m}.{p}" for m in ("attn.to_add_out", "txt_mlp.net.0.proj", "txt_mlp.net.2")
          for p in ("weight", "bias")}  # fmt: skip
"""The last block's text results go nowhere."""


@pytest.fixture(scope="module")
def exported(exported_qwen: Exported) -> Exported:
    return exported_qwen


@pytest.fixture(scope="module")
def pipeline(exported: Exported) -> Any:
    from diffusers import QwenImagePipeline

    return QwenImagePipeline.from_pretrained(exported.sources.base, local_files_only=True)


@pytest.mark.parametrize("name", list(QWEN.parts))
def test_the_graph_computes_what_the_original_does(exported: Exported, name: str) -> None:
    results = check_parity(exported.networks[name], exported.model(name), "fp32")
    assert len(results) == 3
    assert all(result.relative_error <= 1e-5 for result in results)


@pytest.mark.parametrize("name", list(QWEN.parts))
def test_ports_stay_symbolic_and_types_are_plain(exported: Exported, name: str) -> None:
    graph = onnx.load_from_string(exported.model(name)).graph
    for values, ports in zip((graph.input, graph.output), PORTS[name], strict=True):
        found = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
        assert found == ports
    forbidden = {onnx.TensorProto.DataType.Value(kind) for kind in FORBIDDEN_TYPES}
    kinds = {value.type.tensor_type.elem_type for value in graph.value_info}
    assert not (kinds | {tensor.data_type for tensor in graph.initializer}) & forbidden
    assert not {"GatherND", "Loop", "If"} & {node.op_type for node in graph.node}


def test_the_backbone_keeps_all_weights_but_those_that_feed_nothing(exported: Exported) -> None:
    network = exported.networks["backbone"]
    found = {tensor.name for tensor in onnx.load_from_string(exported.model("backbone")).graph.initializer}
    assert set(network.weights) - found == UNUSED
    from export.fp8.policy import select_layers

    layers = select_layers(sorted(network.weights), network.fp8_layers)
    assert len(layers) == 3 * 12 - 3
    assert not set(layers) & UNUSED
    assert all(len(network.weights[name].shape) == 2 for name in layers)
    assert not [name for name in layers if "mod" in name or "norm" in name or "_in." in name or "proj_out" in name]


@pytest.mark.parametrize(("batch", "image", "text"), [(1, 1, 1), (2, 30, 3)])
def test_any_size_runs_and_gates_are_normalised(exported: Exported, batch: int, image: int, text: int) -> None:
    sizes = {"batch": batch, "image_tokens": image, "rows": 1, "text_tokens": text}
    inputs = exported.networks["backbone"].examples(sizes, torch.Generator().manual_seed(1))
    means, logweights, loggammas = exported.run("backbone", inputs)
    assert means.shape == (batch, image, MODES, 64)
    assert loggammas.shape == (batch, image, MODES - 1, 4)
    np.testing.assert_allclose(np.exp(logweights).sum(axis=2), 1.0, rtol=1e-5)


def test_a_single_token_is_encoded(exported: Exported) -> None:
    network = exported.networks["text"]
    inputs = network.examples({"batch": 2, "text_tokens": 1}, torch.Generator().manual_seed(1))
    with torch.no_grad():
        (truth,) = network.reference()(**inputs)
    torch.testing.assert_close(torch.from_numpy(exported.run("text", inputs)[0]), truth, rtol=1e-4, atol=1e-5)


def test_the_backbone_sees_nothing_of_masked_text(exported: Exported) -> None:
    sizes = {"batch": 2, "image_tokens": 12, "rows": 3, "text_tokens": 7}
    inputs = exported.networks["backbone"].examples(sizes, torch.Generator().manual_seed(2))
    # A mask may have any pattern, as diffusers' may.
    inputs["encoder_hidden_states_mask"] = torch.tensor([[1, 0, 1, 1, 0, 1, 1], [1, 1, 0, 0, 0, 0, 0]])
    masked = inputs["encoder_hidden_states_mask"] == 0
    before = exported.run("backbone", inputs)
    inputs["encoder_hidden_states"] = torch.where(masked[..., None], 100.0, inputs["encoder_hidden_states"])
    for one, other in zip(before, exported.run("backbone", inputs), strict=True):
        np.testing.assert_array_equal(one, other)
    inputs["encoder_hidden_states_mask"] = torch.ones(2, 7, dtype=torch.int64)
    assert not np.allclose(before[0], exported.run("backbone", inputs)[0], atol=1e-2)


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (3, 5), (7, 2), (1, 1), (83, 83)])
def test_rotations_are_those_of_diffusers(rows: int, columns: int) -> None:
    from diffusers.models.transformers.transformer_qwenimage import QwenEmbedRope

    from arcflow.architectures.qwen import image_positions, text_positions

    axes, text = (16, 56, 56), 9
    image, truth = QwenEmbedRope(10000, list(axes), scale_rope=True)([(1, rows, columns)], None, text)
    truth = torch.cat([truth, image])
    cosines, sines = Rope(axes)((image_positions(rows, columns), text_positions(rows, columns, text)))
    assert cosines.dtype == sines.dtype == torch.float32
    assert cosines.shape == (text + rows * columns, sum(axes))
    torch.testing.assert_close(cosines, truth.real.repeat_interleave(2, 1), rtol=0, atol=1e-6)
    torch.testing.assert_close(sines, truth.imag.repeat_interleave(2, 1), rtol=0, atol=1e-6)


def test_text_rotations_are_those_of_transformers() -> None:
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRotaryEmbedding

    rope = {"rope_type": "mrope", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    config = Qwen2_5_VLTextConfig(hidden_size=512, num_attention_heads=4, rope_parameters=rope)
    states, positions = torch.zeros(2, 600, 512), torch.arange(600).expand(3, 2, -1)
    truth = Qwen2_5_VLRotaryEmbedding(config)(states, positions)
    for found, wanted in zip(TextRope(128, 1e6)(states, positions), truth, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_prompts_are_encoded_as_the_pipeline_does(exported: Exported, pipeline: Any) -> None:
    from tokenizers import Tokenizer

    limits = Limits(Range(1, 1, 4), Range(16, 64, 64), Range(16, 64, 64), Range(1, 32, 512), 16)
    file = QWEN.tokenizers(exported.sources.base, limits)["text"]
    assert isinstance(file.source, bytes)
    tokenizer, spec = Tokenizer.from_buffer(file.source), file.spec
    prompts = [*CAPTIONS, ""]
    encoded = [tokenizer.encode(spec.template.format(prompt)).ids for prompt in prompts]
    longest = max(map(len, encoded))
    ids = torch.tensor([row + [spec.pad_id] * (longest - len(row)) for row in encoded])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in encoded])
    (sequence,) = exported.run("text", {"input_ids": ids, "attention_mask": mask})
    with torch.no_grad():
        truth, truth_mask = pipeline._get_qwen_prompt_embeds(prompts)
    found, found_mask = torch.from_numpy(sequence)[:, spec.drop :], mask[:, spec.drop :]
    assert torch.equal(found_mask, truth_mask)
    assert int(found_mask.sum(1).min()) < int(found_mask.sum(1).max())
    torch.testing.assert_close(found[found_mask.bool()], truth[truth_mask.bool()], rtol=1e-4, atol=1e-5)


def test_images_are_decoded_as_the_pipeline_does(exported: Exported, pipeline: Any) -> None:
    vae = pipeline.vae
    latent = QWEN.latent(exported.sources.base)
    assert (latent.channels, latent.patch, latent.vae_factor) == (16, 2, 8)
    z = torch.randn(2, 16, 6, 4, generator=torch.Generator().manual_seed(3))
    tokens = pipeline._pack_latents(z, 2, 16, 6, 4)
    unpacked = pipeline._unpack_latents(tokens, 48, 32, 8)
    mean, std = (torch.tensor(vae.config[key]).view(1, 16, 1, 1, 1) for key in ("latents_mean", "latents_std"))
    with torch.no_grad():
        truth = vae.decode(unpacked * std + mean, return_dict=False)[0][:, :, 0]
    scaling, shift = (torch.tensor(v).view(16, 1, 1) for v in (latent.scaling_factor, latent.shift_factor))
    (images,) = exported.run("vae_decoder", {"latents": (z / scaling + shift).float()})
    torch.testing.assert_close(torch.from_numpy(images), truth, rtol=1e-4, atol=1e-5)


def test_kernels_lose_their_time_axis_and_nothing_else(exported: Exported) -> None:
    video = open_folder(exported.sources.base / "vae")
    frame = FrameWeights(video)
    assert list(frame) == list(video)
    assert frame.size < video.size
    for name in ("decoder.conv_in.weight", "decoder.conv_in.bias", "decoder.norm_out.gamma"):
        whole = video.read(name)
        wanted = whole[:, :, -1] if whole.ndim == 5 else whole
        assert frame[name].shape == tuple(wanted.shape)
        assert torch.equal(frame.read(name), wanted)
        assert torch.equal(frame.rows_float32(name, 1, 3), wanted[1:3])


def test_a_text_encoder_that_is_another_is_refused(exported: Exported, tmp_path: Path) -> None:
    import json
    import shutil

    shutil.copytree(exported.sources.base / "text_encoder", tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    rope = {"rope_type": "linear", "factor": 2.0}
    for change, message in (
        ({"text_config": config["text_config"] | {"rope_parameters": rope}}, "'linear'"),
        ({"text_config": config["text_config"] | {"layer_types": ["sliding_attention"] * 2}}, "sliding"),
        ({"model_type": "qwen3_vl"}, "'qwen3_vl'"),
    ):
        file.write_text(json.dumps(config | change))
        with pytest.raises(ExportError, match=message):
            qwen_text_network(tmp_path / "model")
