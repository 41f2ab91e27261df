"""Progress, log, estimate and the inspector's JSON: the parts around the builder, without it."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from engines.schema import PlanMemory
from engines.tensorrt import TensorRTLog
from export.errors import ExportError
from export.folders import places
from export.folders.places import Needs, available_memory, check_out, check_place, one_after_the_other
from export.tensorrt import report as reports
from export.tensorrt.estimate import estimate
from export.tensorrt.job import memory_of
from export.tensorrt.progress import Flattened, Progress, Split, Whole
from export.tensorrt.report import INSPECTOR, NETWORK, Gemms, Layers, inspect_plan, read_inspector
from export.tensorrt.targets import DATA_CENTRE, TARGETS

PARSED = Layers(NETWORK, {"bfloat16": 40, "float8": 4}, Gemms(5, 4, 500, 400), 2, 1, 0)


def test_nested_phases_fill_the_step_of_their_parent() -> None:
    seen: list[Progress] = []
    phases = Flattened(seen.append)
    phases.start("all", None, 2)
    phases.start("first", "all", 4)
    phases.step("first", 1)
    assert seen[-1] == Progress(0.25, "first")
    phases.finish("first")
    phases.step("all", 0)
    phases.start("second", "all", 5)
    phases.start("inner", "second", 2)
    phases.step("inner", 0)
    assert seen[-1] == Progress(pytest.approx(0.55), "inner")
    phases.finish("inner")
    phases.finish("second")
    phases.step("all", 1)
    assert seen[-1].fraction == 1.0


def test_phases_in_any_order_never_go_back_or_beyond_one() -> None:
    dice = random.Random(3)
    seen: list[Progress] = []
    phases = Flattened(seen.append)
    names = [f"phase {index}" for index in range(8)]
    for _ in range(2000):
        name = dice.choice(names)
        match dice.randrange(4):
            case 0:
                phases.start(name, dice.choice([None, *(n for n in names if n < name)]), dice.randrange(6))
            case 3:
                phases.finish(name)
            case _:
                phases.step(name, dice.randrange(9))
    fractions = [progress.fraction for progress in seen]
    assert fractions == sorted(fractions)
    assert fractions[0] >= 0
    assert fractions[-1] <= 1


def test_phases_then_bytes_are_one_fraction() -> None:
    seen: list[Progress] = []
    whole = Whole(seen.append, Split(phases=0.1, writing=0.6), 1000)
    whole.phase(Progress(0.5, "optimizing"))
    whole.phase(Progress(1.0, "refitting"))
    for size in (0, 500, 1000, 1200):
        whole.written(size)
    assert [progress.fraction for progress in seen] == pytest.approx([0.05, 0.1, 0.6, 0.8, 1.0, 1.0])
    assert seen[-1].phase == "writing"


def test_the_reason_is_the_first_error_without_source_positions() -> None:
    log = TensorRTLog()
    assert log.reason == "it gave no reason"
    log.error("[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (cudaError 35)")
    log.error(
        "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([pass.cpp:1500: run_passes] Cannot compile for "
        "target(s) sm86. In compileGraph at /_src/optimizer/codeGenerator.cpp:2012)"
    )
    assert log.reason == "Cannot compile for target(s) sm86."
    for _ in range(100):
        log.warning("a warning")
    assert (log.warning_count, len(log.warnings) < 100) == (100, True)


def test_the_estimate_holds_what_was_measured() -> None:
    gibibyte = 1 << 30
    flux = 12_030_000_000
    assert 12.8 * gibibyte <= estimate(0, flux, TARGETS["sm120"]).memory <= 15.5 * gibibyte
    assert 19.1 * gibibyte <= estimate(0, flux, TARGETS["sm89"]).memory <= 22 * gibibyte
    assert estimate(99, flux, TARGETS["rtx"]).memory == estimate(99, flux, TARGETS["sm120"]).memory
    assert estimate(0, flux, TARGETS["sm120"]).disk >= flux
    assert 200 <= (estimate(0, flux, TARGETS["sm120"]).seconds or 0) <= 300
    assert estimate(0, flux, TARGETS["sm90"], DATA_CENTRE).seconds is None
    assert estimate(2 * flux, 0, TARGETS["sm89"]).memory > 1.55 * 2 * flux


def test_what_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_place(tmp_path / "not" / "there", "--out", 1 << 20)
    Needs(1 << 20).check()
    with pytest.raises(ExportError, match=r"^about .* GB of memory are needed, .* are free: do less$"):
        Needs(1 << 60).check(advice="do less")
    with pytest.raises(ExportError, match=r"are needed, 1 MB are free: close other programs"):
        Needs(1 << 60).check(free=1_000_000)
    with pytest.raises(ExportError, match=r"needs .* bytes, .* are free there; choose another --workdir"):
        check_place(tmp_path, "--workdir", 1 << 60)
    monkeypatch.setattr(places, "available_memory", lambda: None)
    Needs(1 << 60).check()


def test_needs_add_up_and_are_said_in_words() -> None:
    both = one_after_the_other([Needs(3_000_000_000, 10, 60.0), Needs(1, 2_000_000_000, 7200.0)])
    assert both == Needs(3_000_000_000, 2_000_000_010, 7260.0)
    assert str(both) == "3.0 GB of memory, 2.0 GB of disk and 2.0 h"
    assert str(Needs(5_000_001, seconds=3.0)) == "6 MB of memory and 1 min"
    assert one_after_the_other([both, Needs(1)]).seconds is None
    assert str(Needs(1_000_000)) == "1 MB of memory"


def test_what_is_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to("nowhere")
    for name, kind in (("file", "a file"), ("link", "a link that leads nowhere")):
        with pytest.raises(ExportError) as caught:
            check_out(tmp_path / name / "new" / "bundle")
        there = tmp_path / name
        assert str(caught.value) == (
            f"cannot write {there}/new/bundle: {there} is {kind}, and a folder is needed there; choose another --out, "
            f"or move {there} away"
        )
        with pytest.raises(ExportError, match=f"{name} exists and is not a bundle: it will not be replaced"):
            check_out(tmp_path / name)
    check_out(tmp_path / "new" / "bundle")


def test_available_memory_is_some_number_of_bytes() -> None:
    free = available_memory()
    assert free is None or 0 <= free < 1 << 50


def test_without_a_gpu_the_parsed_network_is_what_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "local_capabilities", lambda: ("sm86",))
    assert inspect_plan(None, tmp_path / "none.plan", ("sm120", "sm89"), PARSED) is PARSED  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["Format/Datatype", "DataType"])
def test_the_inspectors_json_of_both_generations(key: str) -> None:
    layers = [
        {"Name": "a", "LayerType": "gemm", "Outputs": [{key: "Row major linear FP8 format"}]},
        {"Name": "b", "TacticName": "fmha_v2_flash", "Outputs": [{key: "BFloat16"}]},
        {"Name": "c", "Outputs": [{key: "Float"}]},
        {"Name": "d", "Outputs": [{key: "Half"}]},
        {"Name": "e", "Outputs": [{key: "Int64"}]},
        {"Name": "f", "Outputs": []},
        "_gemm_mha_v2_0x1234",
    ]  # fmt: skip
    found = read_inspector(json.dumps({"Layers": layers}), PARSED)
    assert found.source == INSPECTOR
    assert found.precisions == {"float8": 1, "bfloat16": 1, "float32": 1, "float16": 1}
    assert found.attention_fused == 2
    assert (found.gemms, found.attention) == (PARSED.gemms, PARSED.attention)


def test_what_the_builder_says_of_a_plans_memory() -> None:
    log = TensorRTLog()
    assert memory_of(log) is None
    for message in (
        "Total Host Persistent Memory: 80 bytes",
        "Total Activation Memory: 8306688 bytes",
        "Total Activation Memory: 4096 bytes",
        "[MemUsageStats] Peak memory usage of TRT CPU/GPU memory allocators: CPU 0 MiB, GPU 0 MiB",
    ):
        log.information(message)
    assert memory_of(log) is None, "the weights were not told"
    log.information("Total Weights Memory: 33152 bytes")
    assert memory_of(log) == PlanMemory(weights=33152, activations=8306688)
