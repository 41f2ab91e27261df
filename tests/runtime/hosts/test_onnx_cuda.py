"""ONNX Runtime on a GPU: what is rejected where there is none, and that nothing is left to the CPU in silence."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from engines.bundle import open_bundle
from foundation.cli import run
from runtime import generate
from runtime.cuda.errors import DeviceError, DeviceMemoryError
from runtime.errors import BackendError, RequestError
from runtime.hosts import onnx_cuda
from runtime.hosts.onnx_network import OnnxRuntimeNetwork, describe
from runtime.pipeline import Pipeline

CPU, CUDA = onnx_cuda.CPU, onnx_cuda.CUDA
HAS_CUDA = CUDA in onnxruntime.get_available_providers()


def load(folder: Path, device: str, name: str = "t5") -> OnnxRuntimeNetwork:
    bundle = open_bundle(folder, contents="when used")
    spec = bundle.manifest.networks[name]
    return OnnxRuntimeNetwork(name, bundle.read(spec.file), spec, 1, {}, onnx_cuda.ordinal_of(device))


class Session:
    """A session as ONNX Runtime shows it: its providers, and nodes by provider."""

    def __init__(self, **nodes: list[str]) -> None:
        self._nodes = {"cuda": CUDA, "cpu": CPU}
        self._parts = [
            SimpleNamespace(
                ep_name=self._nodes[place],
                get_nodes=lambda kinds=kinds: [SimpleNamespace(op_type=kind, name="", domain="") for kind in kinds],
            )
            for place, kinds in nodes.items()
        ]

    def get_providers(self) -> list[str]:
        return [CUDA, CPU]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        return self._parts


@pytest.mark.parametrize(("device", "ordinal"), [("cpu", None), ("cuda", 0), ("cuda:0", 0), ("cuda:12", 12)])
def test_devices(device: str, ordinal: int | None) -> None:
    assert onnx_cuda.ordinal_of(device) == ordinal


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:-1", "cuda:1000", "CUDA", "cuda:1\n", ""])
def test_what_is_no_device_is_refused(device: str) -> None:
    with pytest.raises(RequestError, match="must be cpu, cuda, or cuda:N"):
        onnx_cuda.ordinal_of(device)


def test_on_the_cpu_nothing_changes(small: Path) -> None:
    network = load(small, "cpu")
    assert network.placement is None
    assert describe([network]) == f"ONNX Runtime {onnxruntime.__version__}, {CPU}"


def test_a_package_without_the_provider_names_the_command(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["AzureExecutionProvider", CPU])
    with pytest.raises(DeviceError) as stopped:
        load(small, "cuda")
    assert f"has no {CUDA}, only AzureExecutionProvider, {CPU}: {onnx_cuda.INSTALL}" in str(stopped.value)


@pytest.mark.skipif(HAS_CUDA, reason="this ONNX Runtime has the provider")
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_was_replaced_by_the_cpu_is_an_error(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this ONNX Runtime really does when it is asked for CUDA: a session on the CPU, and no exception."""
    monkeypatch.setattr(onnx_cuda, "check_provider", lambda ordinal: None)
    with pytest.raises(DeviceError, match=f"put the t5 network on {CPU} in place of {CUDA}"):
        load(small, "cuda")


def test_what_a_session_is_asked_for(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Options reach ONNX Runtime; a session that did take the network runs as ever, and says where its nodes are."""
    real, asked = onnxruntime.InferenceSession, []

    def start(model: bytes, options: Any, providers: Any, enable_fallback: int) -> Any:
        asked.append((options, providers, enable_fallback))
        session = real(model, options, providers=[CPU])
        shown = Session(cuda=["MatMul", "Add"], cpu=["Shape"])
        session.get_providers = shown.get_providers
        session.get_provider_graph_assignment_info = shown.get_provider_graph_assignment_info
        return session

    monkeypatch.setattr(onnx_cuda, "check_provider", lambda ordinal: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", start)
    network = load(small, "cuda:3")
    ((options, providers, fallback),) = asked
    (name, given), rest = providers
    assert (name, given["device_id"], given["use_tf32"], rest, fallback) == (CUDA, "3", "0", CPU, 0)
    assert options.use_deterministic_compute
    assert options.get_session_config_entry("session.record_ep_graph_assignment_info") == "1"
    assert describe([network]).endswith(f"{CUDA}: 2 nodes on the GPU, 1 on the CPU (Shape)")


def test_the_whole_pipeline_says_where_it_ran(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every network is opened on the GPU that was named; sessions of the CPU stand for it here."""
    real, devices = onnxruntime.InferenceSession, []

    def start(model: bytes, options: Any, providers: Any, **rest: Any) -> Any:
        devices.append(providers[0][1]["device_id"])
        session = real(model, options, providers=[CPU])
        session.get_providers = lambda: [CUDA, CPU]
        session.get_provider_graph_assignment_info = Session(cuda=["MatMul"]).get_provider_graph_assignment_info
        return session

    expected = Pipeline.open(small, threads=1).generate("a rose", seed=3)
    monkeypatch.setattr(onnx_cuda, "check_provider", lambda ordinal: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", start)
    pipeline = Pipeline.open(small, threads=1, backend="onnxruntime", device="cuda:2")
    assert devices == ["2"] * 5
    assert pipeline.backend == f"ONNX Runtime {onnxruntime.__version__}, {CUDA}: 5 nodes on the GPU"
    np.testing.assert_array_equal(pipeline.generate("a rose", seed=3).latents, expected.latents)


def test_the_command_ends_with_one_line(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    target = tmp_path / "rose.png"
    arguments = ["a rose", "--model", str(small), "--backend", "onnxruntime", "--device", "cuda", "--out", str(target)]
    assert run(generate.main, arguments) == 2
    error = capsys.readouterr().err
    assert onnx_cuda.INSTALL in error
    assert len(error.splitlines()) == 1
    assert not target.exists()


def test_nodes_are_really_counted(small: Path) -> None:
    """The interface that the placement is read from, as the installed ONNX Runtime has it."""
    bundle = open_bundle(small, contents="when used")
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = onnxruntime.InferenceSession(bundle.read("t5.onnx"), options, providers=[CPU])
    (part,) = session.get_provider_graph_assignment_info()
    assert (part.ep_name, [node.op_type for node in part.get_nodes()]) == (CPU, ["Gather"])


@pytest.mark.parametrize("kind", ["MatMul", "FusedMatMul", "Gemm", "Conv", "ConvTranspose", "Attention"])
def test_products_are_not_left_to_the_cpu(kind: str) -> None:
    with pytest.raises(DeviceError, match=f"cannot run the backbone network: its {kind} would be left to the CPU"):
        onnx_cuda.placement("backbone", Session(cuda=["Add"] * 9, cpu=["Shape", kind]))


def test_a_gpu_that_took_nothing_is_an_error() -> None:
    with pytest.raises(DeviceError, match="all its nodes would be left to the CPU"):
        onnx_cuda.placement("clip", Session(cpu=["Gather"]))


def test_the_arithmetic_of_shapes_may_stay() -> None:
    found = onnx_cuda.placement("backbone", Session(cuda=["MatMul", "Add"], cpu=["Shape", "Gather", "Shape"]))
    assert (found.provider, found.nodes, found.on_cpu) == (CUDA, {CUDA: 2, CPU: 3}, ("Gather", "Shape"))


class Driver:
    """The driver's C interface: a version, a status of cuInit, and a number of GPUs."""

    def __init__(self, version: int = 13000, status: int = 0, count: int = 1) -> None:
        self._version, self._status, self._count = version, status, count

    def cuDriverGetVersion(self, target: Any) -> int:
        target._obj.value = self._version
        return 0

    def cuInit(self, flags: int) -> int:
        return self._status

    def cuDeviceGetCount(self, target: Any) -> int:
        target._obj.value = self._count
        return 0


@pytest.mark.parametrize(
    ("driver", "ordinal", "message"),
    [
        (None, 0, "there is no NVIDIA driver here"),
        (Driver(version=12040), 0, "driver is for CUDA 12.4 at most, and this ONNX Runtime is for CUDA 13.0: update"),
        (Driver(status=100), 0, "there is no GPU 0 here, but no GPU"),
        (Driver(status=999), 0, r"cannot start \(CUDA error 999\)"),
        (Driver(), 1, "there is no GPU 1 here, but GPU 0 alone"),
        (Driver(count=2), 2, "there is no GPU 2 here, but GPUs 0 to 1"),
    ],
)
def test_what_a_machine_lacks(driver: Any, ordinal: int, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_library(name: str) -> Any:
        if driver is None:
            raise OSError(f"{name}: cannot open shared object file")
        return driver

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "cuda_version", "13.0", raising=False)
    monkeypatch.setattr(onnx_cuda, "_preload", lambda: "")
    monkeypatch.setattr(ctypes, "CDLL", load_library)
    with pytest.raises(DeviceError, match=message):
        onnx_cuda.check_provider(ordinal)


def test_missing_libraries_are_named_and_nothing_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def preload_dlls(**where: object) -> None:
        for name in ("libcublas.so.13", "libcurand.so.10"):
            print(f"Failed to load {name}: {name}: cannot open shared object file")
        print("Please follow the manual")

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "preload_dlls", preload_dlls)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    onnx_cuda._preload.cache_clear()
    try:
        with pytest.raises(DeviceError, match=r"libcublas\.so\.13, libcurand\.so\.10 cannot be loaded; install them"):
            onnx_cuda.check_provider(0)
    finally:
        onnx_cuda._preload.cache_clear()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "text",
    ["CUDA failure 2: out of memory ; GPU=0", "BFCArena: Failed to allocate memory for requested buffer of size 9"],
)
def test_exhausted_memory_is_called_by_its_name(text: str) -> None:
    error = onnx_cuda.explain(RuntimeError(text), "the backbone network failed on x [1, 2]")
    assert isinstance(error, DeviceMemoryError)
    assert "failed on x [1, 2]: the GPU's memory is exhausted; ask for fewer" in str(error)
    assert type(onnx_cuda.explain(RuntimeError("other"), "it failed")) is BackendError
