"""What may be asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from runtime.errors import RequestError
from runtime.request import MAX_IMAGES, check_request
from tests.runtime import small_bundle

MANIFEST = small_bundle.manifest()


def test_defaults_are_the_bundles() -> None:
    request = check_request(MANIFEST, "a rose")
    assert (request.prompts, request.seeds, request.nfe, request.num_images) == (("a rose",), (0,), 2, 1)
    assert (request.width, request.height, request.previews, request.total) == (32, 32, 0, 1)


@pytest.mark.parametrize(
    "allowed",
    [
        {"seed": 2**64 - 1},
        {"seed": np.int64(3), "nfe": np.uint8(64)},
        {"width": 16, "height": 64},
        {"num_images": MAX_IMAGES},
        {"previews": 64},
    ],
)
def test_what_is_allowed(allowed: dict[str, Any]) -> None:
    check_request(MANIFEST, ["a", "b"] if "num_images" not in allowed else "a", **allowed)


@pytest.mark.parametrize(
    ("prompt", "changes", "message"),
    [
        ("", {}, "the prompt is empty"),
        (" \t\n", {}, "the prompt is empty"),
        ([], {}, "there is no prompt"),
        (["a rose", ""], {}, "the prompt is empty"),
        (["a rose", 3], {}, "a prompt is a string, not int"),
        ("x" * 10_001, {}, "has 10001 characters"),
        ("a\0b", {}, "not plain text"),
        ("a \udcff dog", {}, "not plain text"),
        ("a", {"seed": -1}, f"seed is -1; it must be from 0 to {2**64 - 1}"),
        ("a", {"seed": 2**64}, "seed is"),
        ("a", {"seed": 1.5}, "seed is 1.5; a whole number"),
        ("a", {"seed": True}, "seed is True; a whole number"),
        ("a", {"nfe": 0}, "nfe is 0; it must be from 1 to 64"),
        ("a", {"nfe": 65}, "nfe is 65"),
        ("a", {"num_images": 0}, "num_images is 0"),
        ("a", {"num_images": MAX_IMAGES + 1}, "num_images is"),
        (["a", "b"], {"num_images": MAX_IMAGES}, "2048 images in all"),
        ("a", {"width": 8}, "width is 8; it must be from 16 to 64"),
        ("a", {"width": 10**9}, "width is 1000000000"),
        ("a", {"height": 72}, "height is 72"),
        ("a", {"height": 33}, "height is 33 px; it must be a multiple of 8 from 16 to 64"),
        ("a", {"height": "32"}, "height is '32'; a whole number"),
        ("a", {"previews": -1}, "previews is -1"),
        ("a", {"previews": 65}, "previews is 65"),
    ],
)
def test_what_is_refused_with_one_clear_sentence(prompt: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        check_request(MANIFEST, prompt, **changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_seed_an_image() -> None:
    assert check_request(MANIFEST, ["a", "b"], seed=[9, 4]).seeds == (9, 4)
    assert check_request(MANIFEST, ["a", "b"], seed=9).seeds == (9, 10)
    with pytest.raises(RequestError, match="seed is a list of 1; a number is needed, or one for each of the 2 images"):
        check_request(MANIFEST, ["a", "b"], seed=[9])
    with pytest.raises(RequestError, match="seed is -1"):
        check_request(MANIFEST, ["a", "b"], seed=[9, -1])
