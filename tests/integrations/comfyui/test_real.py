"""The nodes in a real ComfyUI: queued over HTTP, followed over its websocket, as its page does.

Runs where ComfyUI is: COMFYUI=folder, and COMFYUI_PYTHON=its Python (default: the one of folder/.venv or folder/venv).
"""

from __future__ import annotations

import io
import json
import os
import socket
import struct
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runtime import Pipeline

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "integrations" / "comfyui"
COMFYUI = os.environ.get("COMFYUI")
FILES = ("messages.json", "history.json")

pytestmark = [
    pytest.mark.skipif(not COMFYUI, reason="COMFYUI=FOLDER names no ComfyUI"),
    pytest.mark.slow,
]


def python_of(comfyui: Path) -> str:
    named = os.environ.get("COMFYUI_PYTHON")
    found = [path for path in (comfyui / ".venv/bin/python", comfyui / "venv/bin/python") if path.is_file()]
    return named or str(found[0])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a ComfyUI on the CPU with our package in its custom_nodes, and nobody else's."""
    comfyui, base = Path(str(COMFYUI)).resolve(), tmp_path_factory.mktemp("comfyui")
    (base / "custom_nodes").mkdir()
    (base / "custom_nodes" / "arcflow").symlink_to(PACKAGE)
    styled = base / "models" / "arcflow" / "style"
    styled.mkdir(parents=True)
    (styled / "tiny-fp16-cpu").symlink_to(ROOT / "engines" / "bundles" / "tiny-fp16-cpu")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = base / "log.txt"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [
                *(python_of(comfyui), "main.py", "--cpu", "--port", str(port), "--base-directory", str(base)),
                *("--database-url", "sqlite:///:memory:", "--disable-auto-launch"),
            ],
            cwd=comfyui,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=sink,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            if process.poll() is not None:
                pytest.fail(log.read_text(encoding="utf-8")[-3000:])
            try:
                get(url, "/system_stats")
                break
            except OSError:
                time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def get(url: str, path: str) -> Any:
    with urllib.request.urlopen(url + path, timeout=10) as answer:
        return json.load(answer)


def run(url: str, out: Path, *options: str, **inputs: object) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The messages and the history of the example workflow, with other inputs."""
    workflow = json.loads((PACKAGE / "arcflow_api.json").read_text(encoding="utf-8"))
    for node in workflow.values():
        node["inputs"] |= {name: value for name, value in inputs.items() if name in node["inputs"]}
    out.mkdir()
    (out / "workflow.json").write_text(json.dumps(workflow), encoding="utf-8")
    client = [python_of(Path(str(COMFYUI))), str(Path(__file__).with_name("client.py"))]
    subprocess.run([*client, url, out / "workflow.json", out, *options], check=True, timeout=120)
    messages, history = (json.loads((out / name).read_text(encoding="utf-8")) for name in FILES)
    return messages, history


def images_of(out: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) for path in sorted(out.glob("image-*.png"))]


def test_images_are_those_of_the_pipeline_to_the_bit(server: str, tmp_path: Path) -> None:
    stats = get(server, "/system_stats")["system"]
    print("ComfyUI", stats["comfyui_version"])
    messages, history = run(
        server, tmp_path / "out", seed=5, batch=3, previews=4, prompt="a smiling face with sunglasses"
    )
    assert history["status"]["status_str"] == "success"
    made = images_of(tmp_path / "out")
    expected = Pipeline.open("tiny").generate("a smiling face with sunglasses", seed=5, num_images=3).images
    assert len(made) == 3
    assert all(np.array_equal(image, wanted) for image, wanted in zip(made, expected, strict=True))
    progress = [m["data"] for m in messages if m["type"] == "progress"]
    assert [(p["value"], p["max"], p["node"]) for p in progress] == [(i, 6, "2") for i in range(1, 7)]


def test_previews_come_while_it_generates(server: str, tmp_path: Path) -> None:
    """Four, as ComfyUI's binary messages of JPEG images; each near the frame that the pipeline gives."""
    run(server, tmp_path / "out", seed=7, previews=4)
    frames = [path.read_bytes() for path in sorted((tmp_path / "out").glob("preview-*.bin"))]
    expected = Pipeline.open("tiny").generate("a smiling face with sunglasses", seed=7, previews=4).previews[0]
    assert [struct.unpack(">II", frame[:8]) for frame in frames] == [(1, 1)] * 4
    for frame, wanted in zip(frames, expected, strict=True):
        shown = Image.open(io.BytesIO(frame[8:]))
        assert shown.size == (512, 512), "ComfyUI fits previews to --preview-size"
        enlarged = Image.fromarray(wanted.image).resize(shown.size, Image.Resampling.BILINEAR)
        assert np.abs(np.asarray(shown, dtype=float) - np.asarray(enlarged)).mean() < 3, "a JPEG of another image"


def test_interrupting_ends_the_generation(server: str, tmp_path: Path) -> None:
    messages, history = run(server, tmp_path / "out", "--interrupt", seed=9, batch=200, nfe=64)
    assert messages[-1]["type"] == "execution_interrupted" and messages[-1]["data"]["node_id"] == "2"
    assert history["status"]["status_str"] == "error" and not images_of(tmp_path / "out")
    _, after = run(server, tmp_path / "next", seed=9)
    assert after["status"]["status_str"] == "success", "the loaded bundle goes on serving"


def test_freeing_the_cache_gives_the_bundle_back(server: str, tmp_path: Path) -> None:
    """The loader has to run again. Queued twice without it, the loaded bundle is used again."""

    def cached(name: str, seed: int) -> list[str]:
        messages, _ = run(server, tmp_path / name, seed=seed)
        return [node for m in messages if m["type"] == "execution_cached" for node in m["data"]["nodes"]]

    cached("first", 1)
    assert cached("second", 2) == ["1"]
    body = json.dumps({"unload_models": True, "free_memory": True}).encode()
    urllib.request.urlopen(urllib.request.Request(f"{server}/free", body, {"Content-Type": "application/json"})).close()
    time.sleep(2)
    assert cached("third", 3) == []


def test_what_a_bundle_does_not_take_is_told_beside_the_node(server: str, tmp_path: Path) -> None:
    messages, _ = run(server, tmp_path / "out", width=1024)
    assert messages[-1]["type"] == "execution_error" and messages[-1]["data"]["node_id"] == "2"
    assert messages[-1]["data"]["exception_message"].strip() == "width is 1024; it must be from 32 to 128"


def test_bundles_of_comfyuis_own_folder_are_chosen_by_name(server: str, tmp_path: Path) -> None:
    (listed, _) = get(server, "/object_info/ArcFlowLoadBundle")["ArcFlowLoadBundle"]["input"]["required"]["bundle"]
    assert listed[0] == "tiny-fp16-cpu" and "style/tiny-fp16-cpu" in listed
    assert get(server, "/workflow_templates") == {"arcflow": ["arcflow"]}
