"""From a bundle of plans to a pipeline: what is rejected and in which order, what is shared, cached and given back."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines import tensorrt
from engines.bundle import open_bundle
from engines.errors import BundleError, FlavourError, StaleBundleError, TrustError
from engines.machine import this_machine
from engines.schema import ShapeRange
from export.tensorrt.plans import network_profiles
from export.tensorrt.profiles import choose_shapes
from runtime.cuda import opening
from runtime.cuda.device import gpu as device
from runtime.cuda.errors import DeviceError, DeviceMemoryError
from runtime.cuda.host import CudaHost
from runtime.cuda.plans.loading import SHARED
from runtime.errors import BackendError, RequestError
from runtime.pipeline import Pipeline
from tests.runtime.cuda import plan_bundle
from tests.runtime.cuda.fake_tensorrt import MAGIC, SCRATCH, FakeTensorRT, toolkit
from tests.runtime.cuda.stand_in import StandInDevice

PROMPT = "a smiling face with sunglasses"


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[StandInDevice]]:
    """A machine with a GPU, sm89, and TensorRT for RTX; the devices that were opened."""
    opened: list[StandInDevice] = []

    def open_device(ordinal: int = 0) -> StandInDevice:
        made = StandInDevice(64 << 20, capability="sm89")
        made.stream = 0x100 + len(opened)
        FakeTensorRT.devices[made.stream] = made
        opened.append(made)
        return made

    loaded = toolkit()
    monkeypatch.setattr(device, "open_device", open_device)
    monkeypatch.setattr(opening, "load", lambda flavour: loaded)
    monkeypatch.setattr(FakeTensorRT, "loads", 0)
    yield opened
    FakeTensorRT.devices.clear()


@pytest.fixture
def folder(small: Path, tmp_path: Path) -> Path:
    return plan_bundle.build(tmp_path / "tiny-fp32-sm89", small).root


def _open(folder: Path, **options: Any) -> Pipeline:
    opened = Pipeline.open(folder, **options)
    assert isinstance(opened.host, CudaHost)
    return opened


@pytest.mark.parametrize("low_vram", [False, True])
def test_plans_give_what_the_cpu_gives(
    gpus: list[StandInDevice], folder: Path, pipeline: Pipeline, low_vram: bool
) -> None:
    opened = _open(folder, low_vram=low_vram)
    assert opened.backend == "tensorrt-rtx 1.7.1.116, stand-in (sm89)"
    for prompt in (PROMPT, PROMPT, "a red apple"):
        made = opened.generate(prompt, num_images=6, seed=2)
        np.testing.assert_allclose(made.latents, pipeline.generate(prompt, num_images=6, seed=2).latents, atol=1e-5)
        assert made.settings.target == "sm89"
    opened.close()
    assert gpus[0].memory_used() == 0


def test_weights_are_loaded_once_a_process(gpus: list[StandInDevice], folder: Path) -> None:
    first, second = _open(folder), _open(folder)
    assert FakeTensorRT.loads == 5
    assert len(gpus) == 2, "each session has a stream and buffers of its own"
    one, two = first.generate(PROMPT), second.generate(PROMPT)
    assert one.latents.tobytes() == two.latents.tobytes()
    first.close()
    assert second.generate(PROMPT, seed=1).latents.tobytes() != one.latents.tobytes()
    digest = second.manifest.files[0].sha256
    del first, second
    gc.collect()
    assert (digest, "tensorrt-rtx", 0) not in SHARED
    _open(folder).close()
    assert FakeTensorRT.loads == 10, "the last session unloaded them"


def test_compiled_kernels_are_kept_beside_the_bundle(
    gpus: list[StandInDevice], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = folder.parent / ".tiny-fp32-sm89.1.7.1.116.sm89.kernels"
    first = _open(folder)
    first.generate(PROMPT)
    assert cached.read_bytes().endswith(b"\nkernels 5")
    first.generate(PROMPT, width=16)
    assert cached.read_bytes().endswith(b"\nkernels 8"), "another size, three contexts more"
    before = cached.stat().st_mtime_ns
    first.generate(PROMPT)
    first.close()
    assert cached.stat().st_mtime_ns == before
    second = _open(folder)
    second.generate(PROMPT)
    assert cached.read_bytes().endswith(b"\nkernels 13"), "they were read again"
    second.close()
    cached.write_bytes(cached.read_bytes().replace(b" 13", b" 93"))
    third = _open(folder)
    third.generate(PROMPT)
    assert cached.read_bytes().endswith(b"\nkernels 5"), "what was altered is not read"
    third.close()
    assert open_bundle(folder), "the bundle itself is as it was"


def test_kernels_that_cannot_be_kept_do_no_harm(gpus: list[StandInDevice], folder: Path) -> None:
    (folder.parent / ".tiny-fp32-sm89.1.7.1.116.sm89.kernels").mkdir()
    opened = _open(folder)
    assert len(opened.generate(PROMPT).images) == 1
    opened.close()


def test_the_data_centre_flavour_compiles_nothing_at_run_time(
    gpus: list[StandInDevice], small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = toolkit("tensorrt")
    monkeypatch.setattr(opening, "load", lambda flavour: loaded)
    bundle = plan_bundle.build(tmp_path / "tiny-fp32-sm89", small, flavour="tensorrt")
    opened = _open(bundle.root)
    opened.generate(PROMPT)
    opened.close()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_memory_counts_weights_and_scratch(gpus: list[StandInDevice], folder: Path, small: Path) -> None:
    memory = _open(folder).memory()
    assert memory["weights"] == sum(path.stat().st_size for path in small.glob("*.onnx"))
    assert memory["apart"] - memory["buffers"] >= 4 * SCRATCH, "five networks, one scratch memory"


def test_plans_without_our_seal_are_not_looked_at(gpus: list[StandInDevice], small: Path, tmp_path: Path) -> None:
    bundle = plan_bundle.build(tmp_path / "tiny-fp32-sm89", small, seal=False)
    with pytest.raises(TrustError, match="no seal"):
        Pipeline.open(bundle.root)
    assert gpus == []
    assert FakeTensorRT.loads == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "1.6.0.1"}, r"built with tensorrt-rtx 1\.6\.0\.1, 1\.7\.1\.116 is installed.* run: python -m"),
        ({"compute_capabilities": ["sm89"]}, "built for sm89, the GPU is sm120"),
    ],
)
def test_plans_for_something_else(
    gpus: list[StandInDevice],
    small: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    message: str,
) -> None:
    bundle = plan_bundle.build(tmp_path / "tiny-fp32-sm89", small, **changes)
    if "compute_capabilities" in changes:
        made = StandInDevice(1 << 20, capability="sm120")
        gpus.append(made)
        monkeypatch.setattr(device, "open_device", lambda ordinal: made)
    with pytest.raises(StaleBundleError, match=message):
        Pipeline.open(bundle.root)
    assert FakeTensorRT.loads == 0
    with pytest.raises(DeviceError, match="closed"):
        gpus[0].mark()


def test_plans_of_another_gpu_can_be_tried(
    gpus: list[StandInDevice], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = StandInDevice(64 << 20, capability="sm90")
    FakeTensorRT.devices[made.stream] = made
    monkeypatch.setattr(device, "open_device", lambda ordinal: made)
    bundle = open_bundle(folder)
    with pytest.raises(StaleBundleError, match="built for sm89, the GPU is sm90"):
        opening.open_cuda(bundle)
    made = StandInDevice(64 << 20, capability="sm90")
    FakeTensorRT.devices[made.stream] = made
    opened = Pipeline(opening.open_cuda(bundle, foreign_gpu=True))
    assert len(opened.generate(PROMPT).images) == 1


def test_a_driver_that_is_too_old(gpus: list[StandInDevice], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = StandInDevice(1 << 20, capability="sm89")
    made.info = replace(made.info, driver="12.8")
    monkeypatch.setattr(device, "open_device", lambda ordinal: made)
    monkeypatch.setattr(opening, "cuda_of", lambda flavour: 13)
    with pytest.raises(DeviceError, match=r"knows CUDA 12\.8, and tensorrt-rtx 1\.7\.1\.116 is for CUDA 13: update"):
        Pipeline.open(folder)


def test_tensorrt_that_is_not_installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "find_spec", lambda name: None)
    monkeypatch.setattr(opening, "load", tensorrt.load.__wrapped__)
    with pytest.raises(FlavourError, match=r"tensorrt-rtx cannot be loaded: .*pip install 'arcflow\[rtx\]'"):
        Pipeline.open(folder)


def test_a_plan_that_was_altered(gpus: list[StandInDevice], folder: Path) -> None:
    path = folder / "t5.plan"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(BundleError, match=r"'t5.plan' was altered"):
        Pipeline.open(folder)
    assert gpus[0].memory_used() == 0


def test_a_plan_that_does_not_load(gpus: list[StandInDevice], small: Path, tmp_path: Path) -> None:
    bundle = plan_bundle.build(tmp_path / "tiny-fp32-sm89", small, plans={"t5.plan": b"something else"})
    with pytest.raises(BackendError, match=r"t5 network's plan 't5\.plan' does not load with tensorrt-rtx .*magic tag"):
        Pipeline.open(bundle.root)


def test_a_tensorrt_that_does_not_start(
    gpus: list[StandInDevice], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(logger: Any) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(FakeTensorRT, "Runtime", fail)
    with pytest.raises(BackendError, match=r"tensorrt-rtx 1\.7\.1\.116 does not start on stand-in \(sm89\)"):
        Pipeline.open(folder)
    assert gpus[0].memory_used() == 0


def test_a_plan_that_does_not_fit(gpus: list[StandInDevice], small: Path, tmp_path: Path) -> None:
    bundle = plan_bundle.build(tmp_path / "tiny-fp32-sm89", small, plans={"t5.plan": b"CUDA out of memory"})
    with pytest.raises(DeviceMemoryError, match=r"does not fit into stand-in \(sm89\): use --low-vram"):
        Pipeline.open(bundle.root)


def test_a_plan_with_other_ports(gpus: list[StandInDevice], small: Path, tmp_path: Path) -> None:
    other = MAGIC + (small / "t5.onnx").read_bytes()
    bundle = plan_bundle.build(tmp_path / "tiny-fp32-sm89", small, plans={"clip.plan": other})
    with pytest.raises(BackendError, match=r"the clip plan has the ports \['input_ids', 'sequence'\]"):
        Pipeline.open(bundle.root)


def test_sizes_outside_the_profile_are_refused_before_anything_runs(
    gpus: list[StandInDevice], small: Path, tmp_path: Path
) -> None:
    bundle = plan_bundle.build(tmp_path / "tiny-fp32-sm89", small)
    profiles = {name: dict(ports) for name, ports in bundle.manifest.engine.profiles.items()}  # type: ignore[union-attr]
    profiles["backbone"]["hidden_states"] = ShapeRange([1, 4, 16], [1, 16, 16], [4, 32, 16])
    profiles["backbone"]["image_rotary"] = ShapeRange([4, 32], [16, 32], [32, 32])
    # Each side within its own limits, and the image too large all the same.
    narrow = plan_bundle.build(tmp_path / "b" / "tiny-fp32-sm89", small, own_profiles=profiles)
    opened = _open(narrow.root)
    assert len(opened.generate(PROMPT, width=64, height=32).images) == 1
    with pytest.raises(RequestError, match="makes 64 image tokens in the backbone network, whose plan takes 4 to 32"):
        opened.generate(PROMPT, width=64, height=64)
    opened.close()


def test_plans_of_one_batch_size(gpus: list[StandInDevice], small: Path, tmp_path: Path, pipeline: Pipeline) -> None:
    manifest = open_bundle(small).manifest
    profiles = network_profiles(manifest, choose_shapes(manifest.limits, batch="3-4"))
    opened = _open(plan_bundle.build(tmp_path / "tiny-fp32-sm89", small, own_profiles=profiles).root)
    made, cpu = (one.generate([PROMPT, "a red apple", "a cat"]) for one in (opened, pipeline))
    np.testing.assert_allclose(made.latents, cpu.latents, atol=1e-5)
    for count in (1, 5):
        with pytest.raises(RequestError, match=r"makes 1 images at once in the backbone network, .* takes 3 to 4"):
            opened.generate(PROMPT, num_images=count)
    opened.close()


def test_what_tensorrt_refuses_is_named(
    gpus: list[StandInDevice], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = _open(folder)
    monkeypatch.setattr(FakeTensorRT, "most", 1)
    with pytest.raises(BackendError, match=r"conditioner network: the shape \[2\] of 'timestep' is outside .*mismatch"):
        opened.generate(["a rose", "a dog"])
    monkeypatch.setattr(FakeTensorRT, "most", 99)
    assert len(opened.generate(["a rose", "a dog"]).images) == 2
    opened.close()


def test_contexts_are_not_kept_without_end(
    gpus: list[StandInDevice], folder: Path, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = _open(folder)
    forgotten: list[int] = []
    forget = gpus[0].forget
    monkeypatch.setattr(gpus[0], "forget", lambda: (forgotten.append(1), forget()))
    sizes = [(w, h) for w in range(16, 65, 8) for h in (16, 32, 64)]
    for width, height in (*sizes, sizes[0]):
        made = opened.generate(PROMPT, width=width, height=height)
        expected = pipeline.generate(PROMPT, width=width, height=height)
        np.testing.assert_allclose(made.latents, expected.latents, atol=1e-5)
    assert len(forgotten) == 1, "graphs of contexts that go must go, with the VAE's 17th"
    opened.close()


@pytest.mark.skipif(bool(this_machine().gpus), reason="there is a GPU here")
def test_without_a_gpu_it_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the real TensorRT, where it is installed: the GPU is asked for before it sees a plan."""
    from foundation.cli import run
    from runtime.generate import main

    assert run(main, [PROMPT, "--model", str(folder), "--out", str(folder.parent / "a.png")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "there is no NVIDIA driver" in said or "CUDA finds no GPU" in said or "tensorrt-rtx cannot be loaded" in said
    assert not (folder.parent / "a.png").exists()


def test_the_fake_has_the_names_of_the_real_one() -> None:
    """Every name that our code calls is there in the installed TensorRT for RTX."""
    real = tensorrt.load(tensorrt.RTX).trt
    for kind in ("Runtime", "ICudaEngine", "IExecutionContext", "IRuntimeConfig", "IRuntimeCache"):
        used = [name for name in vars(getattr(FakeTensorRT, kind)) if not name.startswith("_")]
        assert used
        for name in used:
            assert hasattr(getattr(real, kind), name), f"{kind}.{name}"
    for name in ("num_io_tensors", "device_memory_size_v2"):
        assert hasattr(real.ICudaEngine, name)
    assert hasattr(real.IExecutionContext, "active_optimization_profile")
    assert hasattr(real.IRuntimeConfig, "dynamic_shapes_kernel_specialization_strategy")
    for kind in ("DataType", "TensorIOMode", "TensorLocation", "ExecutionContextAllocationStrategy",
                 "DynamicShapesKernelSpecializationStrategy", "EngineStat"):  # fmt: skip
        for member in getattr(FakeTensorRT, kind):
            assert member.name in getattr(real, kind).__members__, f"{kind}.{member.name}"
