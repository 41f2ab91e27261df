"""The C++ code under AddressSanitizer, UndefinedBehaviorSanitizer, LeakSanitizer, ThreadSanitizer and libFuzzer.

`scripts/native.sh` builds and runs each; `make sanitize`, `make fuzz` and `make soak` run them for longer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engines.locate import BUILT_IN

ROOT = Path(__file__).parents[3]
TINY = BUILT_IN / "tiny-fp16-cpu"
FUZZ_SECONDS = 5
SOAK = 200
LACKING = 77
"""Exit code of a check for which this machine lacks the compiler."""

pytestmark = pytest.mark.slow


def check(*arguments: str) -> str:
    """Run one check; skip where clang is missing."""
    done = subprocess.run(
        [ROOT / "scripts" / "native.sh", *arguments], capture_output=True, text=True, check=False, cwd=ROOT
    )
    if done.returncode == LACKING:
        pytest.skip(done.stderr.strip().removeprefix("skipped: "))
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def asan() -> Path:
    """The build with AddressSanitizer, whose C++ tests have passed."""
    check("asan")
    return ROOT / "build" / "asan"


def test_the_tests_pass_under_address_and_undefined_behaviour_sanitizers(asan: Path) -> None:
    assert any(asan.glob("bin/test_*"))


@pytest.mark.parametrize("name", ["bundle", "tokenizers"])
def test_python_s_tests_pass_with_sanitized_programs(asan: Path, name: str) -> None:
    """The tables of bundles and prompts, through programs that a memory error ends."""
    file = ROOT / "tests" / "native" / "core" / f"test_{name}.py"
    environment = {**os.environ, "ARCFLOW_NATIVE_BUILD": str(asan), "ASAN_OPTIONS": "detect_stack_use_after_return=1"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-8000:]


def test_concurrent_use_is_clean_under_thread_sanitizer() -> None:
    check("tsan")


@pytest.mark.usefixtures("asan")
def test_fuzzers_find_nothing_in_a_bounded_time() -> None:
    lines = check("fuzz", str(FUZZ_SECONDS)).splitlines()
    fuzzers = {path.stem for path in (ROOT / "runtime" / "native" / "fuzz").glob("fuzz_*.cpp")}
    counts = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith("fuzz_")}
    assert set(counts) == fuzzers
    assert all(count > 100 for count in counts.values()), counts


@pytest.mark.usefixtures("asan")
def test_generations_leak_nothing() -> None:
    result = json.loads(check("soak", str(SOAK)).splitlines()[-1])
    assert result["made"] == SOAK
    assert result["failed"] >= SOAK // 10


def test_memory_is_flat(native_build: Path, onnxruntime_library: Path) -> None:
    """Without sanitizers, whose own memory grows: 600 images need no more than 260 did, with models opened anew.

    What malloc has handed out is exact; what is resident depends on how the allocator's arenas fall out.
    """
    done = subprocess.run(
        [native_build / "probe_soak", TINY, onnxruntime_library, "600"], capture_output=True, text=True, check=True
    )
    result = json.loads(done.stdout)
    assert result["end_allocated_kilobytes"] <= result["warm_allocated_kilobytes"] + 64, result
    assert result["end_resident_kilobytes"] < result["warm_resident_kilobytes"] * 1.1, result
