"""Records on disk: lines that are whole, lines that are not, and locks between two processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from arcflow.errors import StudyError
from arcflow.studying.ledger import Few, Ledger, Record, locked

ROOT = Path(__file__).parents[3]
HOLD = """
import sys
from pathlib import Path
from arcflow.studying.ledger import locked
with locked(Path(sys.argv[1]), "run") as had:
    print(had, flush=True)
    sys.stdin.readline()
"""


def record(key: str) -> Record:
    return Record(key, "linear", 1, "fp32", {"2": Few(errors=(0.5, 0.25))}, (1.0,), curve=((2, 0.5, 0.25),))


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert ledger.read() == {}
    ledger.add(record("a"))
    ledger.add(record("b"))
    assert ledger.read() == {"a": record("a"), "b": record("b")}
    assert ledger.read()["a"].few["2"].rel_l2 == 0.375
    assert len(ledger.path.read_text().splitlines()) == 2


def test_a_line_that_a_process_died_in_is_left_out_and_written_over(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.add(record("a"))
    with ledger.path.open("ab") as stream:
        stream.write(b'{"key":"b","variant"')
    assert set(ledger.read()) == {"a"}
    ledger.add(record("c"))
    assert set(ledger.read()) == {"a", "c"}


def test_another_damage_names_the_line(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.add(record("a"))
    ledger.path.write_bytes(b"{}\n" + ledger.path.read_bytes())
    with pytest.raises(StudyError, match=r"line 1 of .*runs.jsonl is no record.*take the line out"):
        ledger.read()


def test_a_lock_is_one_process_s_and_ends_with_it(tmp_path: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    try:
        assert other.stdout.readline() == "True\n"
        with locked(tmp_path, "run") as had:
            assert not had
        with locked(tmp_path, "another") as had:
            assert had
    finally:
        other.kill()
        other.communicate()
    with locked(tmp_path, "run") as had:
        assert had
