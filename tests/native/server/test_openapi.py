"""``/openapi.json`` of ``arcflow-serve`` says what the server does: schemathesis asks it in many ways."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from benchmarks.serving import Server
from tests.native.server.serving import Start

ROOT = Path(__file__).parents[3]
KEY = "a-key"
IMAGES = 2
HOOKS = """
import schemathesis

WHOLE = ("n", "seed", "nfe", "partial_images", "output_compression")

@schemathesis.hook
def filter_body(context, body):
    # Whole numbers are written without a point, which JSON Schema cannot say: 1.0 is an integer there.
    return not isinstance(body, dict) or not any(
        isinstance(value, float) and value.is_integer() for name, value in body.items() if name in WHOLE
    )

@schemathesis.hook
def before_call(context, case, **kwargs):
    # A moment is a valid timeout too, but it ends in 504 before anything else is seen.
    timeout = case.body.get("timeout") if isinstance(case.body, dict) else None
    if type(timeout) in (int, float) and 0 < timeout <= 60:
        case.body["timeout"] = 60
"""


def narrowed(document: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    """The document with what this server and this model allow, where it is the same for all."""
    fields = document["components"]["schemas"]["GenerationRequest"]["properties"]
    sides = [range(model[side]["min"], model[side]["max"] + 1, model["multiple"]) for side in ("width", "height")]
    fields["size"] = {"enum": ["auto", None, *(f"{width}x{height}" for width in sides[0] for height in sides[1])]}
    fields["n"]["maximum"] = IMAGES
    fields["nfe"]["maximum"] = model["nfe"]["max"]
    fields["model"] = {"enum": [model["id"], model["bundle"], None]}
    fields["timeout"]["maximum"] = 60
    for operations in document["paths"].values():
        for method, operation in operations.items():
            if method != "parameters" and "security" in operation:
                operation["security"] = [{"key": []}]
    return document


def test_the_document_is_of_this_release_and_lists_every_path(server: Server) -> None:
    document = server.get("/openapi.json").json()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert document["info"]["version"] == project["version"]
    told = server.get("/nowhere").json()["error"]["message"]
    assert set(re.findall(r"/[\w/.{}]*", told)) | {"/"} == set(document["paths"])
    for path in set(document["paths"]) - {"/v1/images/generations"}:
        assert server.get(path.replace("{id}", "tiny")).status == 200


def test_the_server_does_what_its_document_says(start: Start, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"ann {hashlib.sha256(KEY.encode()).hexdigest()}\n")
    server = start("--api-keys", str(tmp_path / "keys"), "--max-nfe", "4", "--max-images", str(IMAGES))
    bearer = {"Authorization": f"Bearer {KEY}"}
    (model,) = server.request("GET", "/v1/models", headers=bearer).json()["data"]
    document = narrowed(server.get("/openapi.json").json(), model)
    (tmp_path / "openapi.json").write_text(json.dumps(document))
    (tmp_path / "hooks.py").write_text(HOOKS)
    command = [
        *(str(Path(sys.executable).with_name("schemathesis")), "run", "openapi.json"),
        *("--url", f"http://127.0.0.1:{server.port}", "--header", f"Authorization:Bearer {KEY}"),
        *("--checks", "all", "--phases", "examples,coverage,fuzzing", "--max-examples", "10", "--seed", "1"),
        *("--no-shrink", "--warnings", "off"),
    ]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert server.process.poll() is None
