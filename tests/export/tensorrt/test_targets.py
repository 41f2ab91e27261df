"""Which targets there are, what they reject, which flavour serves them on which machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from engines.checks import capabilities
from engines.errors import FlavourError
from engines.machine import Machine
from export.errors import EngineError
from export.precision import Precision
from export.tensorrt import flavours
from export.tensorrt.targets import DATA_CENTRE, RTX, TARGETS, check_target, choose_target

ROOT = Path(__file__).parents[3]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Pretend that this machine has certain flavours and GPUs."""

    def pretend(*installed: str, gpus: tuple[str, ...] = ()) -> None:
        names = tuple(f"card {number}" for number in range(len(gpus)))
        monkeypatch.setattr(flavours, "installed", lambda: installed)
        monkeypatch.setattr(flavours, "this_machine", lambda: Machine(gpus, {}, names))

    return pretend


def test_targets_are_those_that_bundles_know() -> None:
    assert set(TARGETS) == {"sm80", "sm86", "sm89", "sm90", "sm100", "sm120", "rtx"}
    assert all(target.capabilities == capabilities(name) for name, target in TARGETS.items())
    assert {name for name, target in TARGETS.items() if target.flavours == (DATA_CENTRE,)} == {"sm90", "sm100"}
    assert TARGETS["rtx"].flavours == (RTX,)
    assert TARGETS["rtx"].least == 89


@pytest.mark.parametrize("target", list(TARGETS))
@pytest.mark.parametrize("precision", list(Precision))
def test_fp8_needs_sm89(target: str, precision: Precision) -> None:
    if precision is Precision.FP8 and target in ("sm80", "sm86"):
        with pytest.raises(EngineError, match=rf"--target {target} cannot compute in fp8: .*sm89.*bf16"):
            check_target(target, precision)
    else:
        assert check_target(target, precision) is TARGETS[target]


def test_the_refusal_costs_nothing() -> None:
    code = (
        "import sys; from export.tensorrt.targets import check_target\n"
        "try: check_target('sm86', 'fp8')\n"
        "except Exception as error: print(type(error).__name__, sorted({'torch', 'onnx', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "EngineError []"


@pytest.mark.parametrize(("name", "hint"), [("sm75", "allowed: sm80"), ("cpu", "needs no plan"), ("onnx", "no plan")])
def test_other_targets_are_refused(name: str, hint: str) -> None:
    with pytest.raises(EngineError, match=hint):
        choose_target(name)


def test_the_flavour_follows_from_target_gpu_and_what_is_installed(machine) -> None:  # type: ignore[no-untyped-def]
    machine(RTX)
    assert flavours.choose_flavour(TARGETS["sm89"]) == RTX
    machine(DATA_CENTRE, RTX)
    assert flavours.choose_flavour(TARGETS["sm89"]) == RTX
    machine(DATA_CENTRE, RTX, gpus=("sm89",))
    assert flavours.choose_flavour(TARGETS["sm89"]) == DATA_CENTRE
    assert flavours.choose_flavour(TARGETS["sm89"], RTX) == RTX
    assert flavours.choose_flavour(TARGETS["rtx"]) == RTX
    machine(DATA_CENTRE, gpus=("sm90",))
    assert flavours.choose_flavour(TARGETS["sm90"]) == DATA_CENTRE


def test_a_missing_flavour_is_one_line_with_the_command(machine) -> None:  # type: ignore[no-untyped-def]
    machine()
    with pytest.raises(FlavourError, match=r"not installed here: pip install 'arcflow\[rtx\]'$"):
        flavours.choose_flavour(TARGETS["rtx"])
    with pytest.raises(FlavourError, match=r"pip install 'arcflow\[rtx\]', or pip install tensorrt-cu13"):
        flavours.choose_flavour(TARGETS["sm120"])
    machine(RTX)
    with pytest.raises(
        FlavourError, match="--target sm90 needs tensorrt, not installed here: pip install tensorrt-cu13"
    ):
        flavours.choose_flavour(TARGETS["sm90"])
    with pytest.raises(FlavourError, match="--flavour tensorrt-rtx does not build for sm100; allowed there: tensorrt"):
        flavours.choose_flavour(TARGETS["sm100"], RTX)
    with pytest.raises(FlavourError, match="--flavour onnx does not build"):
        flavours.choose_flavour(TARGETS["sm89"], "onnx")


def test_a_data_centre_build_needs_its_gpu(machine) -> None:  # type: ignore[no-untyped-def]
    machine(DATA_CENTRE, gpus=("sm90",))
    with pytest.raises(FlavourError, match=r"needs one of sm100 here, this machine has sm90"):
        flavours.choose_flavour(TARGETS["sm100"])
    machine(DATA_CENTRE)
    with pytest.raises(FlavourError, match=r"this machine has none; .*or pip install 'arcflow\[rtx\]'"):
        flavours.choose_flavour(TARGETS["sm80"])


@pytest.mark.parametrize(
    ("installed", "gpus", "target", "why"),
    [
        ((RTX,), ("sm120",), "sm120", "the GPU of this machine, card 0"),
        ((DATA_CENTRE,), ("sm90", "sm90"), "sm90", "the GPU of this machine, card 0"),
        ((RTX,), ("sm90", "sm89"), "sm89", "the GPU of this machine, card 1"),
        ((RTX,), (), "onnx", "no GPU is here; name the one to build plans for (--target rtx), or"),
        ((RTX,), ("sm70",), "onnx", "no plans are built for sm70, which card 0 is"),
        ((RTX,), ("sm90",), "onnx", "no plans can be built here for card 0: --target sm90 needs tensorrt, not inst"),
        ((), ("sm89",), "onnx", "no plans can be built here for card 0: --target sm89 needs tensorrt-rtx or tensor"),
    ],
)
def test_the_target_of_a_machine_and_why(machine, installed, gpus, target: str, why: str) -> None:  # type: ignore[no-untyped-def]
    machine(*installed, gpus=gpus)
    found, reason = flavours.own_target()
    assert found == target and reason.startswith(why)


def test_a_flavour_that_was_asked_for_decides_too(machine) -> None:  # type: ignore[no-untyped-def]
    machine(DATA_CENTRE, RTX, gpus=("sm90", "sm89"))
    assert flavours.own_target()[0] == "sm90"
    assert flavours.own_target(RTX)[0] == "sm89"


def test_a_flavour_that_is_too_old_or_broken_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "tensorrt", ModuleType("tensorrt"))  # so that the test's end removes what is there
    del sys.modules["tensorrt"]
    (tmp_path / "tensorrt.py").write_text("__version__ = '10.9.0.34'\n")
    with pytest.raises(FlavourError, match=r"tensorrt 10\.9\.0\.34 is too old, 10\.13 is the least"):
        flavours.load.__wrapped__(DATA_CENTRE)
    del sys.modules["tensorrt"]
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.11: cannot open shared object file')\n")
    with pytest.raises(
        FlavourError, match=r"cannot be loaded: libnvinfer.* install it with: pip install tensorrt-cu13"
    ):
        flavours.load.__wrapped__(DATA_CENTRE)
