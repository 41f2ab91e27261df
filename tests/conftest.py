"""What tests of several packages share, because it takes long to make."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from engines.trust import ENVIRONMENT as KEYS

if TYPE_CHECKING:
    from tests.export.qwen_export import Exported


@pytest.fixture(scope="session", autouse=True)
def _own_key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Plans that tests build are sealed with a key of the tests' own, not with the user's."""
    before = os.environ.get(KEYS)
    os.environ[KEYS] = str(tmp_path_factory.mktemp("keys"))
    yield
    if before is None:
        del os.environ[KEYS]
    else:
        os.environ[KEYS] = before


@pytest.fixture(scope="session", autouse=True)
def _hears_ctrl_c() -> Iterator[None]:
    """Who starts the tests in a shell's background makes them deaf to Ctrl-C, which some tests press."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def exported_qwen(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The small Qwen-Image pipeline and its networks as ONNX. Not to be changed."""
    from tests.export.qwen_export import export_qwen

    return export_qwen(tmp_path_factory.mktemp("exported-qwen"))
