"""The student that commands work on: opened once, digested through the one cache, checked as its digests come."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from export.errors import CalibrationError, ExportError
from export.folders import digests
from export.sources.models import MODELS
from export.students.subject import Subject, open_subject
from export.weights.merge import MergedStudent
from export.weights.parents import UNREAD
from foundation.files import sha256_tree
from tests.export.conftest import Sources


@pytest.fixture
def subject(sources: Sources, tmp_path: Path) -> Subject:
    """A student whose files are an hour old."""
    for name in ("base", "adapter"):
        shutil.copytree(getattr(sources, name), tmp_path / name)
    for path in tmp_path.rglob("*"):
        changed = path.stat().st_mtime_ns - 3600 * 10**9
        os.utime(path, ns=(changed, changed))
    return open_subject(MODELS["tiny"], str(tmp_path / "base"), str(tmp_path / "adapter"))


def test_what_one_command_digested_no_other_reads_again(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "CACHE", tmp_path / "digests.json")
    assert subject.student.parents.base == UNREAD
    first = subject.digested().student.parents
    assert (first.base, first.adapter) == (sha256_tree(subject.base / "transformer"), sha256_tree(subject.adapter))
    monkeypatch.setattr(digests, "_read", lambda path, report: pytest.fail(f"{path} was read again"))
    assert subject.digested().student.parents == first
    assert set(subject.digested(networks=()).digests) == {"adapter", "transformer"}


def test_a_model_card_beside_the_adapter_does_not_count(subject: Subject, tmp_path: Path) -> None:
    """It is not downloaded with an adapter, and may be edited."""
    before = subject.digested(tmp_path / "cache.json").student.parents
    (subject.adapter / "README.md").write_text("a card")
    assert subject.digested(tmp_path / "cache.json").student.parents == before
    (subject.adapter / "config.json").write_text((subject.adapter / "config.json").read_text() + " ")
    assert subject.digested(tmp_path / "cache.json").student.parents.adapter != before.adapter


def test_a_student_that_is_another_is_rejected_before_the_base_is_read(subject: Subject, tmp_path: Path) -> None:
    def check(student: MergedStudent) -> None:
        if student.parents.adapter != UNREAD:
            raise CalibrationError("another adapter")

    read: list[str] = []
    with pytest.raises(CalibrationError, match="another adapter"):
        subject.digested(tmp_path / "cache.json", report=lambda what, *_: read.append(what), check=check)
    assert set(read) == {"adapter"}


def test_a_folder_that_is_no_pipeline_is_rejected(subject: Subject) -> None:
    (subject.base / "model_index.json").unlink()
    with pytest.raises(ExportError, match=r"no base pipeline at .*; give --base a pipeline folder"):
        open_subject(MODELS["tiny"], str(subject.base), str(subject.adapter))
    with pytest.raises(ExportError, match="--size 'big' is not understood"):
        subject.size("big")
    assert subject.size(None) == (64, 64)
