"""Clocks, power and temperature beside each figure, through the real C interface of a library that is played."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from foundation.nvml import Look, Nvml, gpus
from gpu.card import shown, summary, watched
from gpu.records import Printer
from tests.gpu.rehearsal.played import HERE
from tests.runtime.cuda import host_library


@pytest.fixture(scope="module")
def library() -> str:
    if host_library.compiler() is None:
        pytest.skip("no C++ compiler")
    return str(host_library.build("libfake_nvml.so", str(HERE / "fake_nvml.cpp")))


def test_what_the_library_says_is_beside_the_figure(library: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert Nvml(library).look() == Look(1755, 2619, 654.321, 61, 97)
    card = {"name": "NVIDIA H100 played", "driver": "580.95", "memory_bytes": 80 << 30, "power_limit_watts": 700.0}
    assert gpus(library) == [card]
    with watched(library) as card:
        time.sleep(0.25)
        Printer("x", card)("speed", "3 m/s")
        Printer("x", card)("another", "4 m/s")
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["show"] == "3 m/s [1755 MHz, 654 W, 61 C]" and first["card"]["at_work"] >= 2
    assert second["card"]["looks"] == 1  # Nothing new since: the last look stands.


def test_figures_are_of_a_card_at_work() -> None:
    idle, slow, fast = Look(210, 2619, 70.0, 35, 0), Look(1500, 2619, 690.0, 66, 100), Look(1980, 2619, 600.0, 60, 90)
    found = summary([idle, idle, slow, fast, fast])
    assert found["sm_mhz"] == 1980 and found["least_sm_mhz"] == 1500 and found["greatest_watts"] == 690
    assert found["celsius"] == 66 and found["at_work"] == 3 and summary([idle])["watts"] == 70
    assert summary([]) == {} and shown({}) == ""


def test_without_a_library_figures_stand_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with watched(str(tmp_path / "none.so")) as card:
        Printer("x", card)("speed", "3 m/s")
    record = json.loads(capsys.readouterr().out)
    assert record["show"] == "3 m/s" and "card" not in record
