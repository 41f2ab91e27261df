"""The ``openai`` package against ``arcflow-serve``: ordinary calls, models, keys and errors, sync and async."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai
import pytest

from benchmarks.serving import Server
from tests.native.server.serving import PROMPT, SLOW, Start, images


def options(server: Server, key: str = "any") -> dict[str, Any]:
    return {"base_url": f"http://127.0.0.1:{server.port}/v1", "api_key": key, "max_retries": 0}


def test_images_of_both_clients_are_those_of_the_plain_answer(server: Server) -> None:
    asked: dict[str, Any] = {"prompt": PROMPT, "n": 2, "size": "96x64", "user": "me", "quality": "high"}

    async def ask() -> Any:
        async with openai.AsyncOpenAI(**options(server)) as client:
            return await client.images.generate(**asked, extra_body={"seed": 7})

    with openai.OpenAI(**options(server)) as client:
        answers = [client.images.generate(**asked, extra_body={"seed": 7}), asyncio.run(ask())]
    wanted = images(server.generate(prompt=PROMPT, n=2, size="96x64", seed=7))
    for answer in answers:
        assert [base64.b64decode(one.b64_json or "") for one in answer.data] == wanted
        assert (answer.size, answer.output_format) == ("96x64", "png")


def test_models(server: Server) -> None:
    async def names() -> list[str]:
        async with openai.AsyncOpenAI(**options(server)) as client:
            return [model.id async for model in client.models.list()]

    with openai.OpenAI(**options(server)) as client:
        (model,) = client.models.list()
        assert [model.id] == asyncio.run(names()) == ["tiny"]
        assert client.models.retrieve("tiny") == model
        assert model.to_dict()["partial_images"] == {"min": 0, "usual": 0, "max": 8}
        with pytest.raises(openai.NotFoundError, match="is not served here"):
            client.models.retrieve("dall-e-3")


def test_errors_are_the_clients_own(server: Server) -> None:
    with openai.OpenAI(**options(server)) as client:
        with pytest.raises(openai.BadRequestError) as bad:
            client.images.generate(prompt=PROMPT, size="65x64")
        assert (bad.value.param, bad.value.code, bad.value.type) == ("size", "invalid_value", "invalid_request_error")
        assert bad.value.request_id
        with pytest.raises(openai.NotFoundError):
            client.images.generate(prompt=PROMPT, model="dall-e-3")
        with pytest.raises(openai.BadRequestError, match="keeps no files"):
            client.images.generate(prompt=PROMPT, response_format="url")
        with pytest.raises(openai.InternalServerError, match="timeout"):
            client.images.generate(prompt=PROMPT, extra_body={**SLOW, "timeout": 0.1})


def test_keys(start: Start, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"ann {hashlib.sha256(b'key-a').hexdigest()}\n")
    server = start("--api-keys", str(keys))

    async def refused() -> None:
        async with openai.AsyncOpenAI(**options(server, "wrong")) as client:
            with pytest.raises(openai.AuthenticationError):
                await client.images.generate(prompt=PROMPT, stream=True)

    with openai.OpenAI(**options(server, "wrong")) as client, pytest.raises(openai.AuthenticationError) as error:
        client.models.list()
    assert error.value.code == "invalid_api_key"
    asyncio.run(refused())
    with openai.OpenAI(**options(server, "key-a")) as client:
        assert [one.type for one in client.images.generate(prompt=PROMPT, stream=True)] == [
            "image_generation.completed"
        ]


def test_the_program_in_the_documents(server: Server, tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "serve.md").read_text()
    program = page.partition("```python\n")[2].partition("```")[0].replace("127.0.0.1:8080", f"127.0.0.1:{server.port}")
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=60)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["face-0.png", "face-1.png", "face-2.png", "face.png"]
    assert (tmp_path / "face.png").read_bytes() == images(server.generate(prompt=PROMPT, seed=7))[0]
