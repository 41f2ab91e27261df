"""Plans from small graphs by the real builder: what is built, what is said of it, what is rejected."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from engines.schema import ShapeRange
from export.errors import EngineError
from export.tensorrt.build import Options, PlanReport, build_plan
from export.tensorrt.flavours import Toolkit
from export.tensorrt.progress import Progress
from export.tensorrt.targets import TARGETS
from foundation.errors import ArcFlowError
from tests.export.tensorrt.graphs import LINEARS, PROFILE, WIDTH, rtx, write_block


@pytest.fixture(scope="module")
def toolkit() -> Toolkit:
    return rtx()


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("blocks")
    return {p: write_block(folder / f"{p}.onnx", p) for p in ("fp32", "fp16", "bf16", "fp8")}


def build(onnx: Path, out: Path, toolkit: Toolkit, target: str = "sm89", **changes: Any) -> PlanReport:
    return build_plan(onnx, out, **{"target": TARGETS[target], "profile": PROFILE, "toolkit": toolkit, **changes})


@pytest.mark.parametrize(
    ("precision", "target"),
    [
        ("fp32", "sm89"),
        *(("fp16", target) for target in ("sm89", "sm120")),
        *(("bf16", target) for target in ("sm80", "sm89", "sm120")),
        *(("fp8", target) for target in ("sm89", "sm120", "rtx")),
    ],
)
def test_plans_of_every_precision_and_target(
    blocks: dict[str, Path], toolkit: Toolkit, tmp_path: Path, precision: str, target: str
) -> None:
    out = tmp_path / "block.plan"
    report = build(blocks[precision], out, toolkit, target)
    content = out.read_bytes()
    assert (report.size, report.sha256) == (len(content), sha256(content).hexdigest())
    assert (report.network, report.flavour, report.version) == (precision, "tensorrt-rtx", toolkit.version)
    assert report.capabilities == TARGETS[target].capabilities
    assert report.memory is not None
    assert report.layers.constant_bytes <= report.memory.weights < report.size
    gemms = report.layers.gemms
    assert (gemms.count, gemms.parameters) == (LINEARS, LINEARS * WIDTH**2)
    itemsize = {"fp32": 4, "fp16": 2, "bf16": 2, "fp8": 1}[precision]
    assert 0 <= report.layers.constant_bytes - itemsize * LINEARS * WIDTH**2 < 2000
    assert gemms.fp8 == (LINEARS if precision == "fp8" else 0)
    assert report.layers.attention == 1
    assert report.layers.attention_fused == (0 if precision == "fp32" else 1)
    own = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "fp8": "bfloat16"}[precision]
    assert max(report.layers.precisions, key=lambda name: report.layers.precisions[name]) == own
    assert report.layers.precisions.get("float8", 0) == (LINEARS if precision == "fp8" else 0)


def test_the_same_build_gives_the_same_bytes(blocks: dict[str, Path], toolkit: Toolkit, tmp_path: Path) -> None:
    first = build(blocks["fp8"], tmp_path / "a.plan", toolkit, name="block")
    (tmp_path / "elsewhere").mkdir()
    copy = Path(shutil.copy(blocks["fp8"], tmp_path / "elsewhere" / "of another name.onnx"))
    again = build(copy, tmp_path / "elsewhere" / "b.plan", toolkit, name="block")
    assert first.sha256 == again.sha256


def test_weights_beside_the_graph_give_the_same_plan(blocks: dict[str, Path], toolkit: Toolkit, tmp_path: Path) -> None:
    outside = write_block(tmp_path / "bf16.onnx", "bf16", external=True)
    assert (tmp_path / "bf16.data").stat().st_size >= 2 * LINEARS * WIDTH**2
    there = build(outside, tmp_path / "there.plan", toolkit)
    assert there.sha256 == build(blocks["bf16"], tmp_path / "here.plan", toolkit).sha256


def test_layers_kept_high_are_not_counted_as_fp8(toolkit: Toolkit, tmp_path: Path) -> None:
    onnx = write_block(tmp_path / "part.onnx", "fp8", high=("v", "out"))
    gemms = build(onnx, tmp_path / "part.plan", toolkit).layers.gemms
    assert (gemms.count, gemms.fp8, gemms.fp8_share) == (LINEARS, 2, 0.5)


def test_attention_without_a_kernel_of_its_own_is_built_and_said(toolkit: Toolkit, tmp_path: Path) -> None:
    onnx = write_block(tmp_path / "narrow.onnx", "fp16", heads=WIDTH // 8)
    layers = build(onnx, tmp_path / "narrow.plan", toolkit).layers
    assert (layers.attention, layers.attention_fused) == (1, 0)


def test_another_profile_is_another_plan(blocks: dict[str, Path], toolkit: Toolkit, tmp_path: Path) -> None:
    wide = {"x": ShapeRange([1, 4, WIDTH], [1, 16, WIDTH], [4, 4096, WIDTH])}
    first = build(blocks["fp16"], tmp_path / "a.plan", toolkit)
    other = build(blocks["fp16"], tmp_path / "b.plan", toolkit, profile=wide)
    assert first.sha256 != other.sha256
    assert other.profile == wide
    assert first.memory is not None
    assert other.memory is not None
    assert first.memory.weights == other.memory.weights
    values = 4 * 4096 * WIDTH
    assert other.memory.activations > first.memory.activations + 2 * values, "the sum and the normed values at least"


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ({"x": ShapeRange([1, 4, 32], [1, 16, 32], [2, 64, 32])}, "takes"),
        ({"x": ShapeRange([1, 16, WIDTH], [1, 4, WIDTH], [2, 64, WIDTH])}, "profile of x"),
        ({"x": ShapeRange([1, WIDTH], [1, WIDTH], [2, WIDTH])}, "profile of x"),
        ({"z": PROFILE["x"]}, "the profile is for z"),
        ({}, "takes x"),
    ],
)
def test_a_profile_that_does_not_fit_is_refused(
    blocks: dict[str, Path], toolkit: Toolkit, tmp_path: Path, profile: Any, message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        build(blocks["fp16"], tmp_path / "x.plan", toolkit, profile=profile)
    assert not list(tmp_path.iterdir())


def test_the_builder_itself_refuses_fp8_before_sm89(blocks: dict[str, Path], toolkit: Toolkit, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"could not build fp8: .*sm86.*fp8_e4m3\.$"):
        build(blocks["fp8"], tmp_path / "x.plan", toolkit, "sm86")
    assert not list(tmp_path.iterdir())


def test_a_broken_graph_is_one_line(toolkit: Toolkit, tmp_path: Path) -> None:
    for content, message in ((b"garbage" * 100, "the file"), (b"\0" * 64, "no inputs"), (b"", "no inputs")):
        (tmp_path / "bad.onnx").write_bytes(content)
        with pytest.raises(EngineError, match=rf"cannot take .*bad\.onnx: .*{message}") as caught:
            build(tmp_path / "bad.onnx", tmp_path / "x.plan", toolkit)
        assert "\n" not in str(caught.value)
    with pytest.raises(EngineError, match="there is no"):
        build(tmp_path / "none.onnx", tmp_path / "x.plan", toolkit)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.onnx"]


def test_an_operator_that_tensorrt_lacks_is_named(toolkit: Toolkit, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("SplitToSequence", ["x", "sizes"], ["parts"], name="the_split", axis=1),
        helper.make_node("SequenceAt", ["parts", "zero"], ["y"]),
    ]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", s, WIDTH]) for n, s in (("x", 8), ("y", 4))]
    constants = [
        onnx.numpy_helper.from_array(np.array([4, 4]), "sizes"),
        onnx.numpy_helper.from_array(np.array(0), "zero"),
    ]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)]), tmp_path / "s.onnx")
    with pytest.raises(EngineError, match="SplitToSequence at the_split"):
        build(tmp_path / "s.onnx", tmp_path / "x.plan", toolkit)


def test_weights_that_are_missing_are_an_error(toolkit: Toolkit, tmp_path: Path) -> None:
    onnx = write_block(tmp_path / "bf16.onnx", "bf16", external=True)
    (tmp_path / "bf16.data").unlink()
    with pytest.raises(EngineError, match=r"bf16\.onnx"):
        build(onnx, tmp_path / "x.plan", toolkit)


def test_options_out_of_range_and_foreign_flavours(blocks: dict[str, Path], toolkit: Toolkit, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="--opt-level 6"):
        build(blocks["fp16"], tmp_path / "x.plan", toolkit, options=Options(opt_level=6))
    with pytest.raises(EngineError, match="does not build for sm90"):
        build(blocks["fp16"], tmp_path / "x.plan", toolkit, "sm90")


def test_progress_only_grows_and_ends_at_one(blocks: dict[str, Path], toolkit: Toolkit, tmp_path: Path) -> None:
    seen: list[Progress] = []
    build(blocks["bf16"], tmp_path / "x.plan", toolkit, report=seen.append)
    fractions = [progress.fraction for progress in seen]
    assert fractions == sorted(fractions)
    assert fractions[0] == 0.0
    assert fractions[-1] == 1.0
    assert max(fractions[:-1]) <= 1.0
    assert len({progress.phase for progress in seen}) > 5
    assert len(set(fractions)) > 20


def test_ctrl_c_stops_the_builder_and_leaves_nothing(blocks: dict[str, Path], toolkit: Toolkit, tmp_path: Path) -> None:
    after: list[float] = []

    def interrupt(progress: Progress) -> None:
        if progress.fraction > 0.02:
            after.append(progress.fraction)
            if len(after) == 1:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        build(blocks["fp16"], tmp_path / "x.plan", toolkit, report=interrupt)
    assert max(after) < 0.5
    assert not list(tmp_path.iterdir())
    assert build(blocks["fp16"], tmp_path / "x.plan", toolkit).size > 0


def test_an_error_of_the_callback_is_raised_here(blocks: dict[str, Path], toolkit: Toolkit, tmp_path: Path) -> None:
    def fail(progress: Progress) -> None:
        if progress.fraction > 0.02:
            raise RuntimeError("no terminal")

    with pytest.raises(RuntimeError, match="no terminal"):
        build(blocks["fp16"], tmp_path / "x.plan", toolkit, report=fail)
    assert not list(tmp_path.iterdir())


def test_a_builder_that_dies_is_one_line(
    blocks: dict[str, Path], toolkit: Toolkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(EngineError, match=r"the builder of fp16 ended without an answer \(.*\): it said nothing"):
        build(blocks["fp16"], tmp_path / "x.plan", toolkit)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_line_and_keeps_the_old_plan(
    blocks: dict[str, Path], toolkit: Toolkit, tmp_path: Path
) -> None:
    resource = pytest.importorskip("resource")
    out = tmp_path / "x.plan"
    out.write_bytes(b"the plan of before")
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(ArcFlowError, match=r"cannot write .*x\.plan"):
            build(blocks["fp16"], out, toolkit)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in tmp_path.iterdir()] == ["x.plan"]
    assert out.read_bytes() == b"the plan of before"


def test_a_failure_of_the_builder_itself_names_the_network_and_a_way_out(toolkit: Toolkit, tmp_path: Path) -> None:
    """TensorRT for RTX 1.7 cannot build CLIP with heads of 10 for a range of batches; for one batch it can."""
    from transformers import CLIPTextConfig, CLIPTextModel

    from export.assembling.attach import attach_external
    from export.assembling.graph import finish, trace
    from export.networks.clip import clip_network
    from export.precision import Precision, opset

    config = CLIPTextConfig(
        vocab_size=60, hidden_size=20, intermediate_size=40, projection_dim=20, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=77, bos_token_id=0, eos_token_id=2, pad_token_id=1,
    )  # fmt: skip
    CLIPTextModel(config).save_pretrained(tmp_path / "clip")
    network = clip_network(tmp_path / "clip")
    model = trace(network, "float16", opset(Precision.FP16, "sm89"))
    attach_external(model, network, tmp_path, "clip", lambda *_: None)
    (tmp_path / "clip.onnx").write_bytes(finish(model, network))
    least, most = [1, 77], [4, 77]
    reason = (
        r"could not build clip: MyelinCheckException: .*; tensorrt-rtx 1\.7\S* fails there by itself.* try --batch 1"
    )
    with pytest.raises(EngineError, match=reason):
        build(
            tmp_path / "clip.onnx", tmp_path / "x.plan", toolkit, profile={"input_ids": ShapeRange(least, least, most)}
        )
    profile = {"input_ids": ShapeRange(least, least, least)}
    assert build(tmp_path / "clip.onnx", tmp_path / "x.plan", toolkit, profile=profile).size > 0
