"""What the Ray application takes and rejects, without Ray."""

from __future__ import annotations

import json
from typing import Any

import pytest

from engines.bundle import open_bundle
from engines.locate import BUILT_IN
from integrations.ray_serve.errors import ApiError
from integrations.ray_serve.files import Form
from integrations.ray_serve.options import OptionError, read
from integrations.ray_serve.parsing import Parsed, parse

TINY = BUILT_IN / "tiny-fp16-cpu"
MANIFEST = open_bundle(TINY).manifest
PROMPT = {"prompt": "a rose"}

REJECTED: list[dict[str, Any]] = [
    {},
    {"prompt": " "},
    {"prompt": 3},
    {"prompt": "x" * 10_001},
    {"prompt": "a\0b"},
    {**PROMPT, "n": 0},
    {**PROMPT, "n": 11},
    {**PROMPT, "n": True},
    {**PROMPT, "n": "2"},
    {**PROMPT, "size": "33x64"},
    {**PROMPT, "size": "64x144"},
    {**PROMPT, "size": "64"},
    {**PROMPT, "size": "x"},
    {**PROMPT, "seed": -1},
    {**PROMPT, "seed": "7"},
    {**PROMPT, "seed": [7]},
    {**PROMPT, "nfe": 65},
    {**PROMPT, "timeout": 0},
    {**PROMPT, "timeout": 61.5},
    {**PROMPT, "model": "dall-e-3"},
    {**PROMPT, "background": "transparent"},
    {**PROMPT, "n": 1.0},
    {**PROMPT, "seed": 1e30},
    {**PROMPT, "seed": 2**64},
    {**PROMPT, "response_format": "url"},
    {**PROMPT, "response_format": "b64"},
    {**PROMPT, "output_format": "gif"},
    {**PROMPT, "output_format": 3},
    {**PROMPT, "output_compression": 101},
    {**PROMPT, "stream": 1},
    {**PROMPT, "stream": True, "n": 2},
    {**PROMPT, "stream": True, "partial_images": 9},
    {**PROMPT, "stream": True, "partial_images": True},
    {**PROMPT, "stream": False, "partial_images": 1},
    {**PROMPT, "partial_images": 1, "response_format": "url"},
    {**PROMPT, "steps": 4},
    {**PROMPT, **dict.fromkeys(("e", "d", "c", "b", "a"), 1)},
]


HOSTILE: list[tuple[bytes, str]] = [
    (b"", "it goes wrong at byte 1"),
    (b"\xff", "it goes wrong at byte 1"),
    (b"[]", "not an array"),
    (b"3", "must be a JSON object"),
    (b'{"prompt": "a", "prompt": "b"}', "names a field twice: prompt"),
    (b" [" * 100_000, "not an array"),
    (b'{"metadata": ' + b"[" * 100_000, "nests deeper than 16 levels"),
    (b'{"metadata": ' + b"[" * 16 + b"]" * 16 + b"}", "nests deeper than 16 levels"),
    (b'{"prompt": "a", "timeout": 1e400}', "a number in timeout is too large"),
    (b'{"prompt": "a", "metadata": {"a": [-1e400]}}', "a number in metadata is too large"),
    (b'{"prompt": "a", "timeout": NaN}', "no number of JSON's"),
    (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", "a number in seed is too large"),
    (b'{"prompt": "a", "timeout": ' + b"9" * 400 + b"}", "a number in timeout is too large"),
    (b'{"prompt": "a", "steps": 4}', "there is no field 'steps'"),
    (b'{"prompt": "\\ud800"}', "not plain text"),
    (json.dumps({f"f{j}": 0 for j in range(65)}).encode(), "more than 64 fields"),
]


def test_a_request_is_read() -> None:
    body = {**PROMPT, "n": 2, "size": "96x32", "seed": 2**64 - 1, "nfe": 4, "timeout": 5, "user": "x", "style": None}
    wanted = Parsed("a rose", 2, 2**64 - 1, 96, 32, 4, 5.0, Form("png", 100), stream=False, partial_images=0)
    assert parse(json.dumps(body).encode(), MANIFEST, 60) == wanted
    wanted = Parsed("a rose", 1, None, 64, 64, 2, 60, Form("png", 100), stream=False, partial_images=0)
    assert parse(json.dumps(PROMPT).encode(), MANIFEST, 60) == wanted
    body = {
        **PROMPT,
        "stream": True,
        "partial_images": 8,
        "output_format": "webp",
        "output_compression": 0,
        "model": "x",
    }
    read = parse(json.dumps(body).encode(), MANIFEST, 60, ["x"])
    assert (read.form, read.stream, read.partial_images) == (Form("webp", 0), True, 8)


@pytest.mark.parametrize(("body", "message"), HOSTILE)
def test_hostile_bodies_are_told_why(body: bytes, message: str) -> None:
    with pytest.raises(ApiError) as error:
        parse(body, MANIFEST, 60)
    assert error.value.status == 400
    assert message in error.value.body["error"]["message"]


@pytest.mark.parametrize("fields", REJECTED)
def test_bad_values_name_their_field(fields: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as error:
        parse(json.dumps(fields).encode(), MANIFEST, 60)
    assert error.value.body["error"]["param"] in {"prompt", *fields}


def test_options_come_as_text() -> None:
    options = read({"model": "flux", "gpus": "0.5", "min_replicas": "2", "timeout": "30"})
    assert (options.gpus, options.min_replicas, options.most_replicas, options.timeout) == (0.5, 2, 2, 30)
    assert read({"aliases": "gpt-image-1,dall-e-3"}).names == ("gpt-image-1", "dall-e-3")
    assert read({}).names == ()
    with pytest.raises(OptionError, match="aliases is 'gpt-image-1=tiny'; it must be names"):
        read({"aliases": "gpt-image-1=tiny"})
    with pytest.raises(OptionError, match="there are model, precision"):
        read({"modle": "flux"})
    with pytest.raises(OptionError, match="must be at least min_replicas"):
        read({"min_replicas": 2, "max_replicas": 1})
