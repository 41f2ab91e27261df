"""A bundle for the tests of the bundle format."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.runtime import small_bundle


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small bundle's folder. Not to be changed."""
    return small_bundle.build(tmp_path_factory.mktemp("pristine") / "tiny-fp32-cpu").root


@pytest.fixture
def bundle(pristine: Path, tmp_path: Path) -> Path:
    """A copy of the small bundle, to be damaged."""
    return Path(shutil.copytree(pristine, tmp_path / "tiny-fp32-cpu"))
