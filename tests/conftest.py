"""What tests of several packages share, because it takes long to make."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.export.qwen_export import Exported


@pytest.fixture(scope="session")
def exported_qwen(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The small Qwen-Image pipeline and its networks as ONNX. Not to be changed."""
    from tests.export.qwen_export import export_qwen

    return export_qwen(tmp_path_factory.mktemp("exported-qwen"))
