"""Bundles for the tests of the runtime, made once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.locate import BUILT_IN
from runtime.pipeline import Pipeline
from tests.runtime import small_bundle

COMMITTED = BUILT_IN / "tiny-fp16-cpu"


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small bundle's folder, called as its manifest says. Not to be changed: copy it."""
    return small_bundle.build(tmp_path_factory.mktemp("bundles") / "tiny-fp32-cpu").root


@pytest.fixture(scope="session")
def default_bundle(small: Path) -> Path:
    """The committed default bundle; the small one in a checkout that has none."""
    return COMMITTED if COMMITTED.is_dir() else small


@pytest.fixture(scope="session")
def pipeline(small: Path) -> Pipeline:
    """The small bundle, loaded."""
    return Pipeline.open(small, threads=1)
