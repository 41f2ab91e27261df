"""Sources by hub id: from a cache as the hub's own library makes it, and from a small hub on this machine."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

from arcflow.errors import SourceError
from arcflow.sources.hub import (
    HubSource,
    find_card,
    parse_id,
    resolve_adapter,
    resolve_base,
    resolve_lora,
)
from export.architectures.flux import FLUX
from export.sources.models import MODELS
from foundation.files import sha256_tree

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OLD = "fedcba9876543210fedcba9876543210fedcba98"
BASE = (
    "model_index.json", "README.md", "flux1.safetensors", "flux1.bin", "scheduler/scheduler_config.json",
    "tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer_2/spiece.model", "text_encoder/config.json",
    "text_encoder/model.safetensors", "text_encoder/pytorch_model.bin", "text_encoder_2/config.json",
    "text_encoder_2/model-1.safetensors", "text_encoder_2/model.safetensors.index.json", "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors", "transformer/config.json", "transformer/model-1.safetensors",
    "transformer/model.ckpt", "extra/model.safetensors",
)  # fmt: skip
REPOSITORIES = {
    "owner/base": BASE,
    "owner/arc": (
        "two/config.json",
        "two/diffusion_pytorch_model.safetensors",
        "two/optimizer.bin",
        "four/config.json",
    ),
    "owner/style": ("style.safetensors", "README.md"),
    "owner/styles": ("a.safetensors", "b.safetensors", "adapter_config.json", "deep/c.safetensors"),
    "owner/gated": ("config.json",),
}


def content(repository: str, name: str) -> bytes:
    return f"{repository} {name}".encode()


@dataclass
class Hub:
    """A hub on this machine. asked: the files that were downloaded from it."""

    url: str
    asked: list[str] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    """The three calls of the hub's API that downloads make: a revision's commit, its files, and a file."""

    hub: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            repository, rest = "/".join(parts[2:4]), parts[4:]
            files = REPOSITORIES.get(repository)
            if files is None:
                self._refuse(404, "RepoNotFound")
            elif rest[:1] == ["revision"] and rest[1] not in ("main", "old", COMMIT):
                self._refuse(404, "RevisionNotFound")
            elif rest[:1] == ["tree"]:
                self._json([self._entry(repository, name) for name in files])
            else:
                commit = OLD if rest[1:] == ["old"] else COMMIT
                self._json({"id": repository, "sha": commit, "siblings": [{"rfilename": name} for name in files]})
            return
        if parts[2:3] != ["resolve"]:
            self._refuse(404, "EntryNotFound")
            return
        repository, name = "/".join(parts[:2]), "/".join(parts[4:])
        if repository == "owner/gated":
            self._refuse(403, "GatedRepo")
            return
        if name not in REPOSITORIES.get(repository, ()):
            self._refuse(404, "EntryNotFound")
            return
        data = content(repository, name)
        if self.command == "GET":
            self.hub.asked.append(name)
        commit = OLD if parts[3] in ("old", OLD) else COMMIT
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
        self._send(200, data, headers)

    def _entry(self, repository: str, name: str) -> dict[str, object]:
        data = content(repository, name)
        return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha256(data).hexdigest()}

    def _refuse(self, code: int, kind: str) -> None:
        self._send(code, b"", {"X-Error-Code": kind, "X-Error-Message": kind})

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, code: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The library's cache, empty and apart from the user's own."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_address[1]}")
    _Handler.hub = hub
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    _endpoint(monkeypatch, hub.url)
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()


def _endpoint(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def offline(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def unreachable(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _endpoint(monkeypatch, "http://127.0.0.1:9")


def put(cache: Path, repository: str, files: tuple[str, ...]) -> Path:
    """A repository in the cache by hand: blobs, and a snapshot of links to them."""
    root = cache / f"models--{repository.replace('/', '--')}"
    snapshot = root / "snapshots" / COMMIT
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    (root / "blobs").mkdir()
    for name in files:
        data = content(repository, name)
        blob = root / "blobs" / hashlib.sha256(data).hexdigest()
        blob.write_bytes(data)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(blob)
    return snapshot


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_ids_and_what_is_none() -> None:
    assert parse_id("owner/name") == HubSource("owner/name", "", None)
    assert parse_id("owner/name/a/b@refs/pr/1") == HubSource("owner/name", "a/b", "refs/pr/1")
    assert str(parse_id("o/n/a@v1")) == "o/n/a@v1"
    for source in (
        "name",
        "/owner/name",
        "./owner/name",
        "owner//name",
        "owner/name/../x",
        "owner/name@",
        "a b/c",
        "~/x/y",
    ):
        assert parse_id(source) is None, source
    for spec in (MODELS["flux"], MODELS["qwen"]):
        assert parse_id(spec.base) is not None and parse_id(spec.adapter) is not None


def test_a_folder_that_is_there_is_taken_as_it_is(cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "owner" / "base"
    folder.mkdir(parents=True)
    assert resolve_base("owner/base", FLUX.folders) == Path("owner/base")
    assert resolve_adapter(folder) == folder
    assert resolve_lora(str(folder)) == folder


@pytest.mark.parametrize("source", ["./nowhere", "/no/such/folder", "name"])
def test_what_is_neither_folder_nor_id_is_refused(cache: Path, source: str) -> None:
    with pytest.raises(SourceError, match=r"there is no adapter at .*; give a folder that is there, or a hub id"):
        resolve_adapter(source)


def test_a_base_comes_with_what_is_needed_and_nothing_that_may_hold_code(hub: Hub) -> None:
    folder = resolve_base("owner/base", FLUX.folders)
    wanted = {
        name for name in BASE
        if not name.endswith((".bin", ".ckpt", ".md")) and not name.startswith(("extra/", "flux1."))
    }  # fmt: skip
    assert files_in(folder) == wanted
    assert set(hub.asked) == wanted
    assert (folder / "vae" / "config.json").read_bytes() == content("owner/base", "vae/config.json")
    assert len(sha256_tree(folder)) == 64


def test_an_adapter_is_a_folder_of_its_repository(hub: Hub) -> None:
    folder = resolve_adapter("owner/arc/two")
    assert folder.name == "two"
    assert files_in(folder) == {"config.json", "diffusion_pytorch_model.safetensors"}
    assert files_in(folder.parent) == {f"two/{name}" for name in files_in(folder)}


def test_a_revision_is_that_commit(hub: Hub) -> None:
    assert resolve_adapter("owner/arc/two@old").parent.name == OLD
    assert resolve_adapter("owner/arc/two").parent.name == COMMIT


def test_a_lora_is_one_file(hub: Hub) -> None:
    assert resolve_lora("owner/style").name == "style.safetensors"
    assert resolve_lora("owner/styles/b.safetensors").read_bytes() == content("owner/styles", "b.safetensors")
    assert "a.safetensors" not in hub.asked
    assert resolve_lora("owner/styles/deep").name == "c.safetensors"
    with pytest.raises(SourceError, match=r"must name one .* found: a\.safetensors, b\.safetensors"):
        resolve_lora("owner/styles")


def test_a_card_is_found_or_done_without(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    place = HubSource("owner/base", "", None)
    card = find_card(place)
    assert card is not None and card.read_bytes() == content("owner/base", "README.md")
    assert find_card(HubSource("owner/nothing", "", None)) is None
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find_card(place) == card
    assert find_card(HubSource("owner/style", "", None)) is None


def test_what_was_downloaded_serves_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    online = [resolve_adapter("owner/arc/two"), resolve_lora("owner/style"), resolve_lora("owner/styles/b.safetensors")]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    count = len(hub.asked)
    again = [resolve_adapter("owner/arc/two"), resolve_lora("owner/style"), resolve_lora("owner/styles/b.safetensors")]
    assert again == online
    assert len(hub.asked) == count
    with pytest.raises(SourceError, match="holds a part of owner/styles only"):
        resolve_lora("owner/styles/a.safetensors")


@pytest.mark.usefixtures("offline")
def test_a_cache_made_by_hand_serves_offline(cache: Path) -> None:
    snapshot = put(cache, "owner/base", BASE)
    assert resolve_base("owner/base", FLUX.folders) == snapshot
    assert (snapshot / "vae" / "config.json").is_symlink()
    assert resolve_base(f"owner/base@{COMMIT}", FLUX.folders) == snapshot


@pytest.mark.usefixtures("unreachable")
def test_a_cache_serves_when_the_hub_does_not_answer(cache: Path) -> None:
    snapshot = put(cache, "owner/arc", REPOSITORIES["owner/arc"])
    assert resolve_adapter("owner/arc/two") == snapshot / "two"


@pytest.mark.usefixtures("unreachable")
@pytest.mark.parametrize("resolve", [resolve_adapter, resolve_lora])
def test_without_cache_and_hub_there_is_one_clear_error(resolve: object) -> None:
    assert callable(resolve)
    with pytest.raises(SourceError, match=r"no folder owner/arc here, the hub cannot be reached, and its cache lacks"):
        resolve("owner/arc")


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("resolve", [resolve_adapter, resolve_lora])
def test_offline_and_not_cached_is_one_clear_error(resolve: object) -> None:
    assert callable(resolve)
    with pytest.raises(SourceError, match="unset HF_HUB_OFFLINE"):
        resolve("owner/arc")


@pytest.mark.usefixtures("offline")
def test_a_cache_that_holds_a_part_is_named(cache: Path) -> None:
    put(cache, "owner/base", ("vae/config.json",))
    with pytest.raises(SourceError, match=r"owner/base has no model_index\.json, or the cache at .* part of it"):
        resolve_base("owner/base", FLUX.folders)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "owner/gated",
            r"owner/gated is gated: accept its licence on https://huggingface\.co/owner/gated.*hf auth login",
        ),
        ("owner/nothing", "no folder owner/nothing here, and no repository owner/nothing on the hub"),
        ("owner/arc/two@v9", "owner/arc has no revision v9"),
        ("owner/arc/six", r"owner/arc/six has no config\.json"),
    ],
)
def test_what_the_hub_refuses_is_one_clear_error(hub: Hub, source: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        resolve_adapter(source)
