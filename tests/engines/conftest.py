"""A bundle for the tests of the bundle format."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from engines.machine import Machine
from engines.trust import ENVIRONMENT
from tests.runtime import small_bundle


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small bundle's folder. Not to be changed."""
    return small_bundle.build(tmp_path_factory.mktemp("pristine") / "tiny-fp32-cpu").root


@pytest.fixture
def bundle(pristine: Path, tmp_path: Path) -> Path:
    """A copy of the small bundle, to be damaged."""
    return Path(shutil.copytree(pristine, tmp_path / "tiny-fp32-cpu"))


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for this machine's key, empty; the machine has the TensorRT of the small plans and no GPU."""
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "keys"))
    monkeypatch.setattr("engines.staleness.this_machine", lambda: Machine((), {"tensorrt-rtx": "1.7.1.116"}))
    return tmp_path / "keys"
