"""What is checked before anything runs on a GPU: the types of a bundle's ports, the sizes that a request makes."""

from __future__ import annotations

import msgspec
import pytest

from engines.memory.buffers import BACKBONE, CONDITIONER
from engines.memory.extents import extents_of
from runtime.cuda.execution.ports import check_extents, check_types
from runtime.errors import BackendError, RequestError
from tests.runtime import small_bundle, small_plans


def test_a_size_that_no_plan_takes() -> None:
    manifest = small_plans.profiled(tokens=32, side=16)
    fits = {"batch": 1, "levels": 2, "image_tokens": 32, "text_tokens": 12, "rows": 16, "columns": 16}
    check_extents(extents_of(manifest), dict.fromkeys(manifest.networks, fits))
    for name, dimension, value, said in (
        (BACKBONE, "image_tokens", 64, "64 image tokens in the backbone network, whose plan takes 4 to 32"),
        (CONDITIONER, "image_tokens", 64, "64 image tokens in the conditioner network, whose plan takes 4 to 32"),
        (CONDITIONER, "levels", 33, "33 noise levels at once in the conditioner network, whose plan takes 1 to 32"),
    ):
        sizes = {**dict.fromkeys(manifest.networks, fits), name: {**fits, dimension: value}}
        with pytest.raises(RequestError, match=said):
            check_extents(extents_of(manifest), sizes)


def test_noise_levels_are_float32() -> None:
    manifest = small_bundle.manifest()
    check_types(manifest)
    spec = manifest.networks[BACKBONE]
    ports = [
        msgspec.structs.replace(port, dtype="float16") if port.name == "modulation" else port for port in spec.inputs
    ]
    networks = {**manifest.networks, BACKBONE: msgspec.structs.replace(spec, inputs=ports)}
    with pytest.raises(BackendError, match="'modulation' is float16; on a GPU it must be float32"):
        check_types(msgspec.structs.replace(manifest, networks=networks))
