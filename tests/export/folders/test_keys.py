"""What a stage's result is known by: its facts, and the code that made it as far as that says anything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from export.folders.keys import code_digest, key_of

MAKER = '''"""Makes."""

from export.inner import part
from foundation.files import atomic_file

NAMES = {"late": "export.late"}


def make() -> int:
    """Makes it."""
    return part()
'''
Edit = Callable[[str], str]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    files = {
        "maker": MAKER,
        "inner/__init__": "from export.inner.part import part\n",
        "inner/part": "def part() -> int:\n    return 1\n",
        "late": "VALUE = 1\n",
        "other": "VALUE = 1\n",
    }
    for name, text in files.items():
        path = tmp_path / "export" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def _after(root: Path, name: str, edit: Edit) -> tuple[str, str]:
    before = code_digest.__wrapped__("export.maker", root)
    path = root / "export" / f"{name}.py"
    path.write_text(edit(path.read_text()))
    return before, code_digest.__wrapped__("export.maker", root)


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("maker", lambda text: text.replace("Makes it.", "Makes it all.")),
        ("maker", lambda text: text.replace("    return", "    # As it is.\n\n    return")),
        ("inner/part", lambda text: text + "\n\n# The end.\n"),
        ("other", lambda text: text.replace("1", "2")),
    ],
    ids=["docstring", "comment and layout", "comment in what is imported", "code that is not imported"],
)
def test_what_says_nothing_keeps_results(root: Path, name: str, edit: Edit) -> None:
    before, after = _after(root, name, edit)
    assert before == after


@pytest.mark.parametrize("name", ["inner/part", "late"], ids=["imported by another", "imported by its name"])
def test_code_that_is_used_does_not(root: Path, name: str) -> None:
    before, after = _after(root, name, lambda text: text.replace("1", "2"))
    assert before != after


def test_the_stages_of_a_build_know_the_code_that_they_run() -> None:
    assert key_of({}, "export.assembling.stages") != key_of({}, "export.tensorrt.plans")
    assert key_of({"a": 1}, "export.tensorrt.plans") != key_of({"a": 2}, "export.tensorrt.plans")
