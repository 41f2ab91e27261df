"""The parts as processes: what they said is kept however they end, in the file and in the table."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from foundation.measuring import table
from gpu.catalogue import PARTS, Options, Part, missing
from gpu.records import parse
from gpu.session import Session

ROOT = Path(__file__).parents[2]
SAMPLE = Part("x", "tests.gpu.sample_part", "a sample")


def _run(mode: str, tmp_path: Path, part: Part = SAMPLE, limit: int = 60) -> dict[str, object]:
    out = tmp_path / "figures.json"
    session = Session(ROOT, Options(modes=(mode,)), out, limit)
    session.do(part)
    written = json.loads(out.read_text())["parts"]["x"]
    assert written == json.loads(json.dumps(session.parts["x"]))
    return session.parts["x"]


@pytest.mark.parametrize(
    ("mode", "state", "kinds"),
    [
        ("well", "done", ["measured"]),
        ("skip", "skipped", ["skipped"]),
        ("piece", "failed", ["measured", "failed", "measured"]),
        ("wrong", "failed", ["measured", "measured"]),
        ("aim", "done", ["measured", "measured"]),
        ("raise", "failed", ["measured", "failed"]),
        ("die", "failed", ["measured", "failed"]),
    ],
)
def test_what_was_said_is_kept(mode: str, state: str, kinds: list[str], tmp_path: Path) -> None:
    entry = _run(mode, tmp_path)
    records: list[dict[str, object]] = entry["records"]  # type: ignore[assignment]
    assert entry["state"] == state
    assert [record["kind"] for record in records] == kinds
    if mode == "die":
        assert "SIGABRT" in str(records[-1]["show"])
    if mode == "raise":
        assert records[-1]["show"] == "ValueError: broken in two lines"
        assert "Traceback" in str(records[-1]["trace"])


def test_a_part_that_hangs_is_ended_with_all_it_started(tmp_path: Path) -> None:
    start = time.monotonic()
    entry = _run("hang", tmp_path, limit=4)
    assert time.monotonic() - start < 30
    records: list[dict[str, object]] = entry["records"]  # type: ignore[assignment]
    assert entry["state"] == "failed" and "stopped after 4 s" in str(records[-1]["show"])
    deadline = time.monotonic() + 10
    while _alive(str(records[1]["show"])) and time.monotonic() < deadline:
        time.sleep(0.05)  # It dies by itself after the signal.
    assert not _alive(str(records[1]["show"]))


def test_each_mode_is_a_process_with_a_limit_of_its_own(tmp_path: Path) -> None:
    part = replace(SAMPLE, modes=("well", "hang", "die", "piece"), usual=("well", "hang", "die", "piece"), limit=4)
    session = Session(ROOT, Options(), tmp_path / "figures.json")
    session.do(part)
    kinds = [(record["kind"], record["show"]) for record in session.parts["x"]["records"]]
    assert [kind for kind, _ in kinds].count("measured") == 6  # well 1, hang 2, die 1, piece 2.
    assert ("failed", "stopped after 4 s; what it had measured stands") in kinds
    assert ("failed", "ended with signal SIGABRT") in kinds
    assert session.parts["x"]["state"] == "failed"


def test_what_does_not_fit_into_the_total_is_left_out(tmp_path: Path) -> None:
    part = replace(SAMPLE, modes=("hang", "well"), usual=("hang", "well"))
    session = Session(ROOT, Options(), tmp_path / "figures.json", total=6)
    session.do(part)
    shows = [record["show"] for record in session.parts["x"]["records"]]
    assert shows[-1] == "no time was left for it" and any(show.startswith("stopped after") for show in shows)


def test_an_interrupted_run_loses_nothing(tmp_path: Path) -> None:
    """run.py is told to end in the middle of a part: the part ends too, figures and table are there."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from gpu import catalogue, run;"
        "run.PARTS = {'x': catalogue.Part('x', 'tests.gpu.sample_part', 'a sample'), 'flux': run.PARTS['flux']};"
        "run.Options = lambda *given: catalogue.Options(*given[:2], ('hang',), *given[3:]);"
        "run.Options.out = catalogue.Options.out;"
        "sys.exit(run.run(run.main, ['--part', 'x', '--out', sys.argv[2]]))"
    )
    out = tmp_path / "figures.json"
    command = [sys.executable, "-c", code, str(ROOT), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as running:
        assert running.stdout is not None
        lines = []
        for line in running.stdout:
            lines.append(line)
            if line.startswith("  child:"):
                break
        running.terminate()
        told = time.monotonic()
        rest = running.stdout.read()
        assert running.wait(30) == 130 and time.monotonic() - told < 20  # The part would have slept for a minute.
    records = json.loads(out.read_text())["parts"]["x"]["records"]
    assert [record["kind"] for record in records] == ["measured", "measured", "failed"]
    assert "interrupted" in records[-1]["show"] and "3 m/s" in rest
    deadline = time.monotonic() + 10
    while _alive(str(records[1]["show"])) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(str(records[1]["show"]))


def _alive(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_part_without_its_packages_is_skipped_with_their_names(tmp_path: Path) -> None:
    part = Part("x", "tests.gpu.sample_part", "a sample", ("json", "no_such_package"))
    assert missing(part) == ["no_such_package"]
    entry = _run("well", tmp_path, part)
    records: list[dict[str, object]] = entry["records"]  # type: ignore[assignment]
    assert entry["state"] == "skipped" and "no_such_package" in str(records[0]["show"])


def test_other_lines_are_not_records() -> None:
    assert parse('{"loss": 1}\n') is None and parse("text\n") is None and parse("{broken\n") is None


def test_the_table_names_what_failed(tmp_path: Path) -> None:
    session = Session(ROOT, Options(modes=("piece",)))
    session.do(SAMPLE)
    text = table(session.rows())
    assert "yes" in text and "ZeroDivisionError" in text and "(failed in" in text


def _command(*arguments: str) -> subprocess.CompletedProcess[str]:
    # Not from the repository: the entry finds it by itself.
    return subprocess.run(
        [sys.executable, str(ROOT / "gpu" / "run.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=tempfile.gettempdir(),
    )


def test_the_entry_lists_the_parts_and_refuses_others() -> None:
    listed = _command("--list")
    assert listed.returncode == 0
    assert [line.partition(":")[0] for line in listed.stdout.splitlines()] == list(PARTS)
    for wrong, allowed in ((("--part", "solver,a"), "allowed: scenarios, machine"), (("--modes", "x"), "eager, diff")):
        done = _command(*wrong)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and allowed in done.stderr


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a GPU: the parts would run")
def test_without_a_gpu_parts_are_skipped_and_say_why(tmp_path: Path) -> None:
    done = _command("--part", "graphs,flux", "--modes", "eager", "--smoke", "--out", str(tmp_path / "figures.json"))
    parts = json.loads((tmp_path / "figures.json").read_text())["parts"]
    assert done.returncode == 0, done.stderr
    assert {name: part["state"] for name, part in parts.items()} == {"graphs": "skipped", "flux": "skipped"}
    assert "no NVIDIA driver" in parts["graphs"]["records"][0]["show"]
    assert "no GPU" in parts["flux"]["records"][0]["show"]
