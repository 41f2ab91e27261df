"""How commands end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from foundation.cli import ArgumentParser, run
from foundation.errors import ArcFlowError


def test_the_commands_own_code_passes() -> None:
    assert run(lambda argv: len(argv or ()), ["a", "b", "c"]) == 3


def test_a_known_fault_is_one_line_and_2(capsys: pytest.CaptureFixture[str]) -> None:
    def command(argv: Sequence[str] | None) -> int:
        raise ArcFlowError("first\n   second")

    assert run(command, []) == 2
    captured = capsys.readouterr()
    assert captured.err == "error: first second\n"
    assert captured.out == ""


def test_an_interrupt_is_130(capsys: pytest.CaptureFixture[str]) -> None:
    def command(argv: Sequence[str] | None) -> int:
        raise KeyboardInterrupt

    assert run(command, []) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_output_on_a_full_disk_is_one_line_and_2() -> None:
    script = "import sys; from foundation.cli import run; sys.exit(run(lambda argv: print('a') or 0))"
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([sys.executable, "-c", script], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: cannot write the output: No space left on device\n"


def test_a_reader_that_has_had_enough_ends_it_in_silence() -> None:
    script = "import sys; from foundation.cli import run; sys.exit(run(lambda argv: print('line\\n' * 100_000) or 0))"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=60) == 141 and process.stderr.read() == b""


def test_a_bug_keeps_its_traceback() -> None:
    def command(argv: Sequence[str] | None) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(command, [])


def test_a_wrong_argument_is_one_line_and_2(capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser(prog="tool", epilog="examples:\n  tool --n 1\n")
    parser.add_argument("--n", type=int)
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(["--n", "x"])
    assert caught.value.code == 2
    assert capsys.readouterr().err == "tool: error: argument --n: invalid int value: 'x' (see tool --help)\n"
    assert "  tool --n 1\n" in parser.format_help()
