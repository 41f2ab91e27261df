"""A hub on this machine: what the hub's library asks of it to make a repository and to commit files to it."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

WRITER, READER = "hf_writer", "hf_reader"
"""Tokens that it knows; the second may not write."""
OWNER = "someone"


@dataclass
class SmallHub:
    """url: where it is; upload_mode: how weights are to be sent; refused: paths whose last part gets that status."""

    url: str = ""
    upload_mode: str = "lfs"
    refused: dict[str, int] = field(default_factory=dict)
    visibility: dict[str, str] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    hub: SmallHub

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        hub.asked.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        if parts[0] == "objects":  # Storage, which is asked without a token.
            sound = hashlib.sha256(body).hexdigest() == parts[1]
            hub.objects[parts[1]] = body
            self._json(200 if sound else 400, {})
            return
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in (WRITER, READER):
            self._json(401, {"error": "Invalid credentials"})
        elif parts[-1] in hub.refused:
            self._json(hub.refused[parts[-1]], {"error": "not today"})
        elif parts == ["api", "repos", "create"]:
            self._create(json.loads(body), token)
        elif parts == ["api", "validate-yaml"]:
            self._json(200, {"errors": [], "warnings": []})
        else:
            self._of_repository(parts, body, token)

    def _create(self, wanted: dict[str, Any], token: str) -> None:
        repository = f"{wanted['organization']}/{wanted['name']}"
        if wanted["organization"] != OWNER or token != WRITER:
            self._json(403, {"error": "You don't have the rights to create a model under this namespace"})
            return
        url = {"url": f"{self.hub.url}/{repository}"}
        if repository in self.hub.visibility:
            self._json(409, {"error": "You already created this model repo", **url})
            return
        self.hub.visibility[repository] = wanted.get("visibility", "public")
        self.hub.files[repository] = {}
        self._json(200, url)

    def _of_repository(self, parts: list[str], body: bytes, token: str) -> None:
        place = parts[2:] if parts[:2] == ["api", "models"] else parts
        repository, what = "/".join(place[:2]).removesuffix(".git"), place[2:]
        if repository not in self.hub.visibility:
            self._json(404, {"error": "Repository not found"})
        elif what and token != WRITER:
            self._json(403, {"error": "Forbidden"})
        elif not what:
            self._json(200, {"id": repository, "sha": "0" * 40})
        elif what == ["auth-check", "write"]:
            self._json(200, {})
        elif what == ["preupload", "main"]:
            self._json(200, {"files": [self._mode(file["path"]) for file in json.loads(body)["files"]]})
        elif what == ["info", "lfs", "objects", "batch"]:
            self._json(200, {"transfer": "basic", "objects": [self._place(one) for one in json.loads(body)["objects"]]})
        elif what == ["commit", "main"]:
            self._commit(repository, [json.loads(line) for line in body.splitlines()])
        else:
            self._json(404, {"error": f"there is no {self.path}"})

    def _mode(self, path: str) -> dict[str, object]:
        large = path.endswith(".safetensors")
        return {"path": path, "uploadMode": self.hub.upload_mode if large else "regular", "shouldIgnore": False}

    def _place(self, wanted: dict[str, Any]) -> dict[str, Any]:
        return {**wanted, "actions": {"upload": {"href": f"{self.hub.url}/objects/{wanted['oid']}"}}}

    def _commit(self, repository: str, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.hub.files[repository][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.hub.files[repository][value["path"]] = self.hub.objects[value["oid"]]
        url = f"{self.hub.url}/{repository}/commit/{'1' * 40}"
        self._json(200, {"commitUrl": url, "commitOid": "1" * 40})

    def _json(self, code: int, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[SmallHub]:
    """A hub that answers as long as the block runs."""
    hub = SmallHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
