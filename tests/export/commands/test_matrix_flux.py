"""The matrix of :mod:`tests.export.commands.matrix` for FLUX."""

from __future__ import annotations

import pytest

from tests.export.commands.matrix import (
    Workshop,
    make_workshop,
    test_onnx_bundles,
    test_plan_bundles,
    test_plans_do_not_depend_on_where_their_networks_lie,
    test_the_same_build_gives_the_same_bytes,
    test_what_cannot_be_built_is_refused_first,
)

__all__ = [
    "test_onnx_bundles",
    "test_plan_bundles",
    "test_plans_do_not_depend_on_where_their_networks_lie",
    "test_the_same_build_gives_the_same_bytes",
    "test_what_cannot_be_built_is_refused_first",
]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return make_workshop("flux", tmp_path_factory.mktemp("flux"))
