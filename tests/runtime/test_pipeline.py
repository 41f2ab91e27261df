"""The pipeline: what it gives, that it gives it again, and what it rejects."""

from __future__ import annotations

import dataclasses
import re
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtime
from engines.bundle import open_bundle
from engines.errors import BundleError, BundleNotFoundError, TrustError
from engines.locate import ENVIRONMENT
from engines.writer import write_bundle
from foundation import noise
from foundation.errors import ArcFlowError
from runtime import solver
from runtime.architectures.base import Array
from runtime.errors import BackendError, RequestError
from runtime.hosts.onnx_network import LoadedNetwork, OnnxRuntimeNetwork
from runtime.hosts.python import PythonHost
from runtime.pipeline import Pipeline
from runtime.result import Generation, Step
from runtime.text import PromptTokenizer
from tests.runtime import small_bundle, small_plans

PROMPT = "a smiling face with sunglasses"


class Counting:
    """A network that notes the batch of each call, and may alter the outputs."""

    def __init__(self, network: LoadedNetwork, alter: Any = None) -> None:
        self.network = network
        self.alter = alter
        self.calls: list[int] = []

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.calls.append(len(next(iter(inputs.values()))))
        outputs = self.network.run(inputs)
        return self.alter(outputs) if self.alter else outputs


def _counting(folder: Path, **alter: Any) -> tuple[Pipeline, dict[str, Counting]]:
    bundle = open_bundle(folder)
    manifest = bundle.manifest
    networks = {
        name: Counting(OnnxRuntimeNetwork(name, bundle.read(spec.file), spec, 1), alter.get(name))
        for name, spec in manifest.networks.items()
    }
    tokenizers = {n: PromptTokenizer(n, bundle.read(spec.file), spec) for n, spec in manifest.tokenizers.items()}
    return Pipeline(PythonHost(manifest, networks, tokenizers)), networks


def _same(one: Generation, two: Generation) -> bool:
    return one.latents.tobytes() == two.latents.tobytes() and all(
        a.tobytes() == b.tobytes() for a, b in zip(one.images, two.images, strict=True)
    )


def test_shapes_dtypes_and_settings(pipeline: Pipeline) -> None:
    made = pipeline.generate(PROMPT, seed=5, width=64, height=16, num_images=2)
    assert [image.shape for image in made.images] == [(16, 64, 3)] * 2
    assert all(image.dtype == np.uint8 for image in made.images)
    assert made.latents.shape == (2, 4, 4, 16)
    assert made.latents.dtype == np.float32
    assert made.settings.seeds == (5, 6)
    assert made.settings.prompts == (PROMPT, PROMPT)
    assert made.settings.sigmas == solver.sigmas(2, 1.7)
    assert made.settings.bundle == pipeline.manifest.digest
    assert set(made.timings) == {"tokenize", "text", "noise", "backbone", "solver", "vae"}
    assert all(seconds >= 0 for seconds in made.timings.values())
    assert made.warnings == ()
    assert made.previews == ((), ())
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.images = ()  # type: ignore[misc]


def test_the_same_request_gives_the_same_bytes(small: Path, pipeline: Pipeline) -> None:
    request: dict[str, Any] = {"seed": 11, "nfe": 3, "num_images": 3}
    first = pipeline.generate(PROMPT, **request)
    assert _same(first, pipeline.generate(PROMPT, **request))
    assert _same(first, Pipeline.open(small, threads=1).generate(PROMPT, **request))


def test_seed_prompt_nfe_and_size_all_matter(pipeline: Pipeline) -> None:
    base = pipeline.generate(PROMPT, seed=1)
    for changed in (
        pipeline.generate(PROMPT, seed=2),
        pipeline.generate("a red apple", seed=1),
        pipeline.generate(PROMPT, seed=1, nfe=4),
    ):
        assert not _same(base, changed)


def test_image_j_is_the_image_of_seed_plus_j(pipeline: Pipeline) -> None:
    several = pipeline.generate(PROMPT, seed=2**64 - 1, num_images=2)
    assert several.settings.seeds == (2**64 - 1, 0)
    for j, seed in enumerate(several.settings.seeds):
        np.testing.assert_allclose(several.latents[j], pipeline.generate(PROMPT, seed=seed).latents[0], atol=1e-5)


def test_the_noise_is_the_documented_one(small: Path) -> None:
    seen: list[Array] = []

    def still(outputs: dict[str, Array]) -> dict[str, Array]:
        return {**outputs, "means": np.zeros_like(outputs["means"])}

    pipeline, _ = _counting(small, backbone=still)
    pipeline.generate(PROMPT, seed=9, on_step=lambda step: seen.append(step.latents))
    # token (row 1, column 2), channel 3, patch position (1, 0) of a 4x4 grid of tokens
    assert seen[-1][0, 3, 3, 4] == noise.normal(9, 16, 16)[1 * 4 + 2, 3 * 4 + 2]


def test_several_prompts_each_with_several_images(small: Path) -> None:
    pipeline, networks = _counting(small)
    made = pipeline.generate([PROMPT, "a red apple", PROMPT], num_images=3, seed=4)
    assert made.settings.prompts == (PROMPT,) * 3 + ("a red apple",) * 3 + (PROMPT,) * 3
    assert made.settings.seeds == tuple(range(4, 13))
    assert len(made.images) == 9
    assert networks["clip"].calls == networks["t5"].calls == [2], "equal prompts are encoded once"
    assert networks["backbone"].calls == [4, 4, 4, 4, 1, 1], "batches of the bundle's most, two evaluations each"
    assert networks["vae_decoder"].calls == [4, 4, 1]


def test_chunks_give_what_single_requests_give(pipeline: Pipeline) -> None:
    made = pipeline.generate(["a woman astronaut", "a frog"], num_images=3, seed=0)
    for index in range(6):
        alone = pipeline.generate(made.settings.prompts[index], seed=made.settings.seeds[index])
        np.testing.assert_allclose(made.latents[index], alone.latents[0], atol=1e-5)


@pytest.mark.parametrize("nfe", [1, 2, 3, 64])
def test_one_evaluation_a_segment(small: Path, nfe: int) -> None:
    pipeline, networks = _counting(small)
    steps: list[Step] = []
    pipeline.generate(PROMPT, nfe=nfe, on_step=steps.append)
    assert networks["backbone"].calls == [1] * nfe
    assert [step.index for step in steps] == list(range(nfe))
    assert {step.total for step in steps} == {nfe}
    assert (steps[0].sigma_from, steps[-1].sigma_to) == (pytest.approx(1.0), 0.0)


def test_steps_count_on_over_batches(pipeline: Pipeline) -> None:
    steps: list[Step] = []
    pipeline.generate(PROMPT, num_images=6, on_step=steps.append)
    assert [(step.index, step.first_image, len(step.latents)) for step in steps] == [
        (0, 0, 4),
        (1, 0, 4),
        (2, 4, 2),
        (3, 4, 2),
    ]
    assert {step.total for step in steps} == {4}


def test_a_callback_cannot_change_the_result(pipeline: Pipeline) -> None:
    def meddle(step: Step) -> None:
        step.latents[...] = 0

    assert _same(pipeline.generate(PROMPT), pipeline.generate(PROMPT, on_step=meddle))


def test_what_a_callback_raises_ends_the_generation(small: Path) -> None:
    pipeline, networks = _counting(small)

    def stop(step: Step) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        pipeline.generate(PROMPT, nfe=5, on_step=stop)
    assert networks["backbone"].calls == [1]


def test_previews_cost_no_evaluation_and_change_nothing(small: Path) -> None:
    pipeline, networks = _counting(small)
    made = pipeline.generate(PROMPT, num_images=2, previews=5, seed=3)
    assert networks["backbone"].calls == [2, 2]
    assert len(networks["vae_decoder"].calls) == 6
    assert _same(made, pipeline.generate(PROMPT, num_images=2, seed=3))
    for frames in made.previews:
        assert [frame.sigma for frame in frames] == list(solver.preview_sigmas(5, 1.7))
        assert all(frame.image.shape == (32, 32, 3) for frame in frames)
    assert not np.array_equal(made.previews[0][0].image, made.previews[1][0].image)


def test_a_preview_is_told_when_it_is_made(small: Path) -> None:
    pipeline, networks = _counting(small)
    told = []
    made = pipeline.generate(
        PROMPT,
        num_images=2,
        seed=[7, 3],
        previews=2,
        on_preview=lambda image, frame: told.append((image, frame, len(networks["backbone"].calls))),
    )
    assert made.settings.seeds == (7, 3)
    assert [image for image, _, _ in told] == [0, 1, 0, 1]
    assert told[0][2] == 1, "the first frame needs no second evaluation"
    for j in (0, 1):
        assert [frame.sigma for image, frame, _ in told if image == j] == [f.sigma for f in made.previews[j]]
        assert _same(made, pipeline.generate(PROMPT, num_images=2, seed=[7, 3]))


def test_previews_approach_the_image(pipeline: Pipeline) -> None:
    made = pipeline.generate(PROMPT, previews=64, nfe=1)
    last = made.previews[0][-1].image.astype(float)
    first = made.previews[0][0].image.astype(float)
    image = made.images[0].astype(float)
    assert abs(last - image).mean() < 0.25 * abs(first - image).mean()


def test_a_long_prompt_is_a_warning(pipeline: Pipeline) -> None:
    made = pipeline.generate("a smiling face with sunglasses " * 10)
    assert len(made.warnings) == 2
    assert "the t5 encoder takes 12 tokens" in made.warnings[1]


def test_threads_may_share_a_pipeline(pipeline: Pipeline) -> None:
    expected = [pipeline.generate(PROMPT, seed=seed) for seed in range(4)]
    made: dict[int, Generation] = {}
    threads = [
        threading.Thread(target=lambda seed=seed: made.update({seed: pipeline.generate(PROMPT, seed=seed)}))
        for seed in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(_same(expected[seed], made[seed]) for seed in range(4))


@pytest.mark.parametrize("changes", [{"nfe": 0}, {"width": 33}, {"seed": -1}, {"num_images": 0}, {"previews": 65}])
def test_a_bad_request_runs_no_network(small: Path, changes: dict[str, int]) -> None:
    pipeline, networks = _counting(small)
    with pytest.raises(RequestError):
        pipeline.generate(PROMPT, **changes)
    assert not any(network.calls for network in networks.values())


def test_values_that_are_not_finite_are_refused(small: Path) -> None:
    pipeline, _ = _counting(small, backbone=lambda outputs: {**outputs, "means": outputs["means"] * np.float32("nan")})
    with pytest.raises(BackendError, match="not finite"):
        pipeline.generate(PROMPT)


def test_outputs_of_another_shape_are_refused(small: Path) -> None:
    pipeline, _ = _counting(small, backbone=lambda outputs: {**outputs, "means": outputs["means"][:, :, :2]})
    with pytest.raises(BackendError, match="gave outputs of shapes"):
        pipeline.generate(PROMPT)


def test_opens_by_name_path_and_string(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(small.parent))
    monkeypatch.chdir(small.parent)
    for source in ("tiny", small, str(small), f"./{small.name}", Path(small.name)):
        assert Pipeline.open(source, threads=1).manifest.model == "tiny"
    assert Pipeline.open("tiny", precision="fp32", target="cpu", threads=1)


def test_what_is_not_there(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(small.parent))
    with pytest.raises(BundleNotFoundError, match=r"no bundle for 'huge'; available: .*tiny-fp32-cpu"):
        Pipeline.open("huge")
    with pytest.raises(BundleNotFoundError, match="there is no bundle at"):
        Pipeline.open(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="but 'fp16' was asked for"):
        Pipeline.open(small, precision="fp16")
    with pytest.raises(RequestError, match="threads is 0"):
        Pipeline.open(small, threads=0)


def test_a_folder_that_is_not_what_its_name_says(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(small, tmp_path / "tiny-fp16-cpu")
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path))
    with pytest.raises(BundleError, match="holds tiny-fp32-cpu, not what its name says"):
        Pipeline.open("tiny", precision="fp16")
    assert Pipeline.open(tmp_path / "tiny-fp16-cpu", threads=1)


def test_plans_are_not_for_the_cpu(tmp_path: Path) -> None:
    folder = small_plans.build(tmp_path / "tiny-fp16-sm89").root
    for choice in ({"device": "cpu"}, {"backend": "onnxruntime"}, {"backend": "onnxruntime", "device": "cuda"}):
        with pytest.raises(BackendError, match="holds TensorRT plans, which run on a GPU by TensorRT alone") as caught:
            Pipeline.open(folder, **choice)  # type: ignore[arg-type]
        assert "leave backend and device out" in str(caught.value)
        assert "python -m export.build --model tiny --precision fp16 --target cpu" in str(caught.value)


def test_plans_that_no_machine_vouches_for(tmp_path: Path) -> None:
    folder = small_plans.build(tmp_path / "tiny-fp16-sm89").root
    with pytest.raises(TrustError, match="tiny-fp16-sm89: its plans have no seal"):
        Pipeline.open(folder)


def test_a_bundle_that_plans_are_built_from(tmp_path: Path) -> None:
    folder = small_bundle.build(tmp_path / "tiny-fp16-onnx", precision="fp16", target="onnx").root
    with pytest.raises(BackendError, match=r"is for target 'onnx' \(ONNX files for building plans\)") as caught:
        Pipeline.open(folder)
    for advice in (f"export.engine {folder} --target TARGET", "--device cuda", "4 bytes of main memory a weight"):
        assert advice in str(caught.value)


def test_onnx_files_are_no_plans(small: Path) -> None:
    with pytest.raises(BackendError, match=r"holds ONNX files, and TensorRT runs plans: .*export\.build --model tiny"):
        Pipeline.open(small, backend="tensorrt")
    with pytest.raises(RequestError, match="low_vram is for TensorRT plans"):
        Pipeline.open(small, low_vram=True)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"backend": "torch"}, "backend is 'torch'; it must be one of tensorrt, onnxruntime"),
        ({"device": "gpu"}, "device is 'gpu'; it must be cpu, cuda, or cuda:N"),
        ({"device": "cpu", "host": "native"}, "are for host='python'"),
        ({"low_vram": True, "host": "native"}, "are for host='python'"),
    ],
)
def test_choices_that_are_none(small: Path, choice: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Pipeline.open(small, **choice)


def test_what_runs_it_is_said(small: Path) -> None:
    assert re.fullmatch(
        r"ONNX Runtime 1\.\d+\.\d+, CPUExecutionProvider", Pipeline.open(small, device="cpu", threads=1).backend
    )


def test_plans_for_several_gpus_are_found_by_one_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_plans.build(tmp_path / "tiny-fp16-rtx", "rtx")
    monkeypatch.setenv("ARCFLOW_ENGINES", str(tmp_path))
    with pytest.raises(TrustError, match="tiny-fp16-rtx"):
        Pipeline.open("tiny", target="sm120")
    with pytest.raises(BundleError, match="but 'sm90' was asked for"):
        Pipeline.open(tmp_path / "tiny-fp16-rtx", target="sm90")


def _with_network(small: Path, folder: Path, data: bytes) -> Path:
    bundle = open_bundle(small)
    files: dict[str, Path | bytes] = {entry.path: small / entry.path for entry in bundle.manifest.files}
    write_bundle(folder, bundle.manifest, {**files, "clip.onnx": data})
    return folder


def test_a_network_that_is_not_onnx(small: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = _with_network(small, tmp_path / "b", b"not onnx")
    with pytest.raises(BackendError, match=r"ONNX Runtime cannot load the clip network 'clip\.onnx'"):
        Pipeline.open(folder)
    assert capfd.readouterr().err == ""


def test_a_network_with_other_ports(small: Path, tmp_path: Path) -> None:
    folder = _with_network(small, tmp_path / "b", (small / "t5.onnx").read_bytes())
    with pytest.raises(BackendError, match=r"clip network has outputs \['sequence'\]"):
        Pipeline.open(folder)


def test_a_network_that_fails_says_on_what(small: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bundle = open_bundle(small)
    spec = bundle.manifest.networks["clip"]
    network = OnnxRuntimeNetwork("clip", bundle.read(spec.file), spec, 1)
    with pytest.raises(BackendError, match=r"the clip network failed on input_ids \[1, 3\]"):
        network.run({"input_ids": np.zeros((1, 3), dtype=np.int64)})
    assert capfd.readouterr().err == ""


def test_every_error_is_an_arcflow_error() -> None:
    assert issubclass(RequestError, ArcFlowError)
    assert issubclass(BackendError, ArcFlowError)


def test_public_names() -> None:
    for name in runtime.__all__:
        assert getattr(runtime, name).__name__ == name
    assert set(runtime.__all__) <= set(dir(runtime))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = runtime.nothing  # type: ignore[attr-defined]


def test_the_committed_bundle_generates(default_bundle: Path) -> None:
    pipeline = Pipeline.open(default_bundle)
    made, limits = pipeline.generate(PROMPT, seed=7), pipeline.manifest.limits
    assert made.images[0].shape == (limits.height.opt, limits.width.opt, 3)
    assert made.images[0].std() > 5
