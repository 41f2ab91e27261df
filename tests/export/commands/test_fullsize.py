"""The full-size benchmark's parts, scaled down: shapes, synthetic weights, measurement, counts, and the command."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from benchmarks.fullsize.graphs import graph_facts
from benchmarks.fullsize.measure import MeasureError, disk_bytes, measure
from benchmarks.fullsize.shapes import Model, adapter_shapes, component_shapes, published
from benchmarks.fullsize.steps import PARTS, NoRoomError, Part, Step, check
from benchmarks.fullsize.synthesise import bytes_of, hollow, synthesise, write_hollow_model
from engines.bundle import open_bundle
from engines.schema import COUNT_MAX
from export import architectures
from export.assembling import gate
from export.build import main as build_main
from export.quality import own
from export.weights.files import open_folder, tensor_set
from export.weights.merge import merge

ROOT = Path(__file__).parents[3]
_FLUX = {
    "num_layers": 1,
    "num_single_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "joint_attention_dim": 64,
    "pooled_projection_dim": 32,
    "axes_dims_rope": [4, 6, 6],
}
_QWEN = {
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "joint_attention_dim": 64,
    "axes_dims_rope": [8, 12, 12],
}
_QWEN_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 8192,
    "rope_scaling": {"mrope_section": [4, 6, 6], "rope_type": "default", "type": "default"},
    "layer_types": ["full_attention"],
}
_QWEN_EYES = {"depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64}
SMALL: dict[str, dict[str, dict[str, Any]]] = {
    "flux": {
        "transformer": _FLUX,
        "adapter": _FLUX,
        "text_encoder": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "projection_dim": 32,
            "vocab_size": 2048,
        },
        "text_encoder_2": {"d_model": 64, "d_ff": 64, "d_kv": 16, "num_heads": 4, "num_layers": 1, "vocab_size": 4096},
        "vae": {"block_out_channels": [32, 32, 32, 32], "layers_per_block": 1},
    },
    "qwen": {
        "transformer": _QWEN,
        "adapter": _QWEN,
        "text_encoder": {**_QWEN_TEXT, "text_config": _QWEN_TEXT, "vision_config": _QWEN_EYES},
        "vae": {"base_dim": 8, "num_res_blocks": 1},
    },
}


def small(name: str) -> Model:
    """The published model with tiny networks."""
    files = {path: dict(content) for path, content in published(name).files.items()}
    for component, changes in SMALL[name].items():
        config = files[f"{component}/config.json"]
        for key, value in changes.items():
            config[key] = {**config[key], **value} if isinstance(value, dict) else value
    return Model(name, files)


@pytest.mark.parametrize(
    ("name", "size", "trained"),
    # Bytes that the published indices give as total_size; trained parameters as published.
    [("flux", 23_802_816_640, 652.4e6), ("qwen", 40_860_802_176, 960.7e6)],
)
def test_transformers_and_adapters_have_the_published_size(name: str, size: int, trained: float) -> None:
    model = published(name)
    transformer = component_shapes(model, "transformer")
    assert bytes_of(transformer) == size
    adapter = adapter_shapes(model, transformer)
    assert sum(map(math.prod, adapter.values())) == pytest.approx(trained, abs=0.05e6)
    assert adapter["proj_out_means.weight"] == (16 * 64, 3072)


@pytest.mark.parametrize(
    ("name", "component", "key", "shape", "parameters"),
    [
        ("flux", "text_encoder", "text_model.embeddings.token_embedding.weight", (49408, 768), 123_060_480),
        ("flux", "text_encoder_2", "shared.weight", (32128, 4096), 4_762_310_656),
        ("flux", "vae", "decoder.conv_in.weight", (512, 16, 3, 3), 83_819_683),
        ("qwen", "text_encoder", "model.embed_tokens.weight", (152064, 3584), 8_292_166_656),
        ("qwen", "vae", "decoder.conv_in.weight", (384, 16, 3, 3, 3), 126_892_531),
    ],
)
def test_other_components_have_the_published_names_and_size(
    name: str, component: str, key: str, shape: tuple[int, ...], parameters: int
) -> None:
    shapes = component_shapes(published(name), component)
    assert shapes[key] == shape
    assert sum(map(math.prod, shapes.values())) == parameters


@pytest.mark.parametrize("name", sorted(SMALL))
def test_a_synthetic_model_can_be_merged(name: str, tmp_path: Path) -> None:
    model = small(name)
    synthesise(model, tmp_path, shard=100_000, rank=4)
    base = open_folder(tmp_path / "base" / "transformer")
    assert len(base.files) > 2
    assert base.size == bytes_of(component_shapes(model, "transformer"))
    weights = merge(tmp_path / "base" / "transformer", tmp_path / "adapter").weights
    assert any(step.pairs for step in weights.steps.values())
    changed = next(step.name for step in weights.steps.values() if step.pairs)
    delta = weights.read(changed).float() - base.read(changed).float()
    assert 0.2 < delta.std() / base.read(changed).float().std() < 0.4


def test_synthetic_weights_are_finite_scaled_and_all_different(tmp_path: Path) -> None:
    model = small("flux")
    synthesise(model, tmp_path, rank=4)
    weights = open_folder(tmp_path / "base" / "transformer")
    for name, info in weights.items():
        tensor = weights.read(name).float()
        assert torch.isfinite(tensor).all()
        if len(info.shape) == 2 and tensor.numel() > 2000:
            assert tensor.std() == pytest.approx(1 / math.sqrt(info.shape[1]), rel=0.1)
            assert len(torch.unique(tensor, dim=0)) == info.shape[0]
    like = [n for n, i in weights.items() if i.shape == (32, 32)]
    assert len(like) > 4
    assert len({weights.read(name).float().sum().item() for name in like}) == len(like)


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        synthesise(small("qwen"), tmp_path / folder, seed=seed, rank=2)
    a, b, c = (next((tmp_path / f / "adapter").glob("*.safetensors")).read_bytes() for f in "abc")
    assert a == b != c


def test_hollow_files_are_of_true_size_and_take_no_room(tmp_path: Path) -> None:
    write_hollow_model(published("flux"), tmp_path, rank=4)
    t5 = open_folder(tmp_path / "base" / "text_encoder_2")
    assert t5.size == 2 * 4_762_310_656
    assert disk_bytes(tmp_path) < 10_000_000
    merge(tmp_path / "base" / "transformer", tmp_path / "adapter")
    policy = tensor_set(tmp_path / "adapter" / "diffusion_pytorch_model.safetensors").files[0].metadata
    assert json.loads(policy["policy_config"]) == {"type": "ArcFlow"}


@pytest.mark.parametrize("name", sorted(SMALL))
def test_a_small_base_is_built_by_the_steps_own_commands(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own, "SECONDS", 0.0)  # The smallest calibration.
    monkeypatch.setattr(gate, "PROMPTS", 2)
    synthesise(small(name), tmp_path, rank=4)
    for step in PARTS[name].steps[1:]:
        words = [word.format(folder=tmp_path) for word in step.command]
        assert words[:2] == ["-m", "export.build"]
        words[words.index("--target") + 1] = "onnx"
        assert build_main([*words[2:], "--resolutions", "256x256"]) == 0
        if step.consumes:
            assert any((tmp_path / step.consumes).glob("*.safetensors"))
            hollow(tmp_path / step.consumes)
    bundle = open_bundle(tmp_path / "bundle")
    assert set(bundle.manifest.networks) == set(architectures.choose(name).parts)
    assert bundle.manifest.quantisation is not None and not bundle.manifest.quantisation.synthetic


@pytest.mark.parametrize("name", sorted(SMALL))
def test_every_network_can_be_built_from_the_published_configurations(name: str, tmp_path: Path) -> None:
    write_hollow_model(published(name), tmp_path)
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    student = merge(base / "transformer", adapter)
    architecture = architectures.choose(name)
    for network_name in architecture.parts:
        network = architecture.network(network_name, base, student)
        with torch.device("meta"):
            module = network.build(torch.bfloat16)
        names = [key.removeprefix("network.") for key in module.state_dict()]
        assert names and all(network.weight_key(key) is not None for key in names), network_name
        shapes = [shape for _, shape in (*network.ports_in.values(), *network.ports_out.values())]
        assert max(dim for shape in shapes for dim in shape if isinstance(dim, int)) <= COUNT_MAX, network_name
    assert architecture.latent(base).channels == 16


def test_a_graph_is_traced_without_weights(tmp_path: Path) -> None:
    from benchmarks.fullsize.trace import main

    write_hollow_model(small("flux"), tmp_path, rank=4)
    out = tmp_path / "graphs" / "backbone.onnx"
    assert main(["flux", "backbone", str(tmp_path), str(out)]) == 0
    facts = graph_facts(out)
    assert facts["weights"] > 1000 and facts["linears"] > 20 and facts["fp8_weight_share"] == 0


def test_measure_counts_memory_disk_and_writing(tmp_path: Path) -> None:
    code = "import os,time; x = os.urandom(50 << 20); open('f', 'wb').write(x[: 20 << 20]); time.sleep(0.3)"
    found = measure([sys.executable, "-c", code], tmp_path, tmp_path / "log", tmp_path, os.environ)
    assert 50 << 20 < found.peak_anonymous < 200 << 20
    assert found.peak_rss >= found.peak_anonymous - (5 << 20)
    assert found.peak_disk >= 20 << 20
    assert found.wall_s > 0.3


def test_measure_says_how_a_command_failed(tmp_path: Path) -> None:
    code = "print('something went wrong'); raise SystemExit(3)"
    with pytest.raises(MeasureError, match=r"exit code 3.*something went wrong"):
        measure([sys.executable, "-c", code], tmp_path, tmp_path / "log", tmp_path, os.environ)


def test_fp8_shares_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "zero"], ["xq"]),
            helper.make_node("DequantizeLinear", ["xq", "s"], ["xd"]),
            helper.make_node("DequantizeLinear", ["a", "as"], ["ad"], axis=0),
            helper.make_node("Transpose", ["ad"], ["at"], perm=[1, 0]),
            helper.make_node("MatMul", ["xd", "at"], ["y"]),
            helper.make_node("MatMul", ["y", "b"], ["z"]),
            helper.make_node("MatMul", ["z", "y"], ["out"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 4])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [4, 4])],
        [
            helper.make_tensor("a", TensorProto.FLOAT8E4M3FN, [4, 4], bytes(16), raw=True),
            helper.make_tensor("as", TensorProto.FLOAT, [4], [1.0] * 4),
            helper.make_tensor("b", TensorProto.FLOAT, [4, 4], [1.0] * 16),
            helper.make_tensor("s", TensorProto.FLOAT, [], [1.0]),
            helper.make_tensor("zero", TensorProto.FLOAT8E4M3FN, [], bytes(1), raw=True),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), str(path))
    facts = graph_facts(path)
    assert (facts["nodes"], facts["weights"], facts["linears"]) == (7, 38, 2)
    assert facts["fp8_linear_share"] == 0.5
    assert facts["fp8_weight_share"] == pytest.approx(17 / 38)


def test_a_part_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NoRoomError, match=r"needs 1000000000 GB of disk"):
        check(Part("vast", 10**18, 0, ()), tmp_path)
    with pytest.raises(NoRoomError, match=r"GiB of memory"):
        check(Part("vast", 0, 1 << 60, ()), tmp_path)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """``benchmarks/fullsize.py``, whose name the package beside it has."""
    spec = importlib.util.spec_from_file_location("fullsize_command", ROOT / "benchmarks" / "fullsize.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec.loader.exec_module(module)
    return module


def write_step(title: str, name: str, limit: int | None) -> Step:
    code = f"open('{{folder}}/{name}', 'wb').write(bytes(8192))"
    return Step(title, ("-c", code), name, memory_limit=limit)


def test_the_command_keeps_the_figures_and_removes_the_rest(
    command: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = (write_step("first", "a", 1 << 40), write_step("second", "b", None))
    monkeypatch.setitem(PARTS, "graphs", Part("graphs", 0, 0, steps))
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"parts": {"other": {"steps": []}}}))
    arguments = ["--part", "graphs", "--work", str(tmp_path / "work"), "--report", str(report)]
    assert command.main(arguments) == 0
    figures = json.loads(report.read_text())
    assert set(figures["parts"]) == {"other", "graphs"}
    assert figures["parts"]["graphs"]["command"].startswith("python benchmarks/fullsize.py --part graphs")
    assert [row["result_bytes"] for row in figures["parts"]["graphs"]["steps"]] == [8192, 8192]
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == figures
    assert not (tmp_path / "work" / "graphs").exists()


def test_a_folder_may_be_a_result_and_its_graph_is_counted(
    command: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code = (
        "import os, onnx; os.makedirs('{folder}/out/deep'); "
        "onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], 'g', [], [])), '{folder}/out/deep/x.onnx')"
    )
    steps = (Step("counted", ("-c", code), "out", "out/**/x.onnx"), Step("not", ("-c", "pass"), "out"))
    monkeypatch.setitem(PARTS, "graphs", Part("graphs", 0, 0, steps))
    report = tmp_path / "report.json"
    command.main(["--part", "graphs", "--work", str(tmp_path / "work"), "--report", str(report)])
    rows = json.loads(report.read_text())["parts"]["graphs"]["steps"]
    assert [row["nodes"] for row in rows] == [0, None]


def test_the_command_says_so_where_a_step_makes_nothing(
    command: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(PARTS, "graphs", Part("graphs", 0, 0, (Step("idle", ("-c", "pass"), "a*"),)))
    arguments = ["--part", "graphs", "--work", str(tmp_path / "work"), "--report", str(tmp_path / "report.json")]
    with pytest.raises(MeasureError, match="there is no a"):
        command.main(arguments)
    assert not (tmp_path / "work" / "graphs").exists()


def test_the_command_fails_where_a_step_needs_too_much_memory(
    command: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(PARTS, "graphs", Part("graphs", 0, 0, (write_step("greedy", "a", 1),)))
    arguments = ["--part", "graphs", "--work", str(tmp_path / "work"), "--report", str(tmp_path / "report.json")]
    assert command.main(arguments) == 1
    assert "over its limit of memory: greedy" in capsys.readouterr().err
