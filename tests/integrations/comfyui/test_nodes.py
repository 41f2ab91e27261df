"""The nodes' contract with ComfyUI, over a stand-in of the few functions of ComfyUI that they call.

test_real.py has a real ComfyUI; this runs everywhere.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from engines.errors import BundleError, BundleNotFoundError
from engines.locate import BUILT_IN, ENVIRONMENT
from runtime import Pipeline, RequestError

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "integrations" / "comfyui"
TINY = "tiny-fp16-cpu"


class InterruptProcessingException(Exception):  # noqa: N818 - ComfyUI's name
    pass


class ComfyUI:
    """What the nodes see of ComfyUI. updates: (value, total, preview) of each; stop_at: interrupt at that update."""

    def __init__(self, models: Path) -> None:
        self.updates: list[tuple[int, int, Any]] = []
        self.stop_at: int | None = None
        self.unloaded = 0
        self.folders: dict[str, list[str]] = {}
        self.models = models

    def modules(self) -> dict[str, ModuleType]:
        comfyui = self

        class ProgressBar:
            def __init__(self, total: int) -> None:
                pass

            def update_absolute(self, value: int, total: int | None = None, preview: Any = None) -> None:
                comfyui.updates.append((value, total or 0, preview))

        def check() -> None:
            if len(comfyui.updates) == comfyui.stop_at:
                raise InterruptProcessingException

        def unload() -> None:
            comfyui.unloaded += 1

        contents: dict[str, dict[str, Any]] = {
            "comfy": {},
            "comfy.utils": {"ProgressBar": ProgressBar},
            "comfy.cli_args": {"args": SimpleNamespace(preview_size=512)},
            "comfy.model_management": {
                "throw_exception_if_processing_interrupted": check,
                "unload_all_models": unload,
                "soft_empty_cache": lambda: None,
            },
            "folder_paths": {
                "models_dir": str(self.models),
                "add_model_folder_path": lambda kind, path: self.folders.setdefault(kind, []).append(path),
                "get_folder_paths": lambda kind: list(self.folders[kind]),
            },
        }
        made = {}
        for name, values in contents.items():
            made[name] = ModuleType(name)
            vars(made[name]).update(values)
        for name, module in made.items():
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(made[parent], child, module)
        return made


@pytest.fixture
def comfyui(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ComfyUI]:
    made = ComfyUI(tmp_path / "models")
    for name, module in made.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    yield made


@pytest.fixture
def nodes(comfyui: ComfyUI, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The node classes, imported as ComfyUI imports a folder of custom_nodes: by its path."""
    name = "/base/custom_nodes/arcflow"
    spec = importlib.util.spec_from_file_location(name, PACKAGE / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    for part in ("bundles", "nodes", "progress"):
        monkeypatch.delitem(sys.modules, f"{name}.{part}", raising=False)
    spec.loader.exec_module(module)
    assert set(module.NODE_DISPLAY_NAME_MAPPINGS) == set(module.NODE_CLASS_MAPPINGS)
    return dict(module.NODE_CLASS_MAPPINGS)


@pytest.fixture(scope="module")
def tiny() -> Iterator[Pipeline]:
    with Pipeline.open("tiny") as pipeline:
        yield pipeline


def generate(nodes: dict[str, Any], pipeline: Pipeline, **options: Any) -> torch.Tensor:
    defaults = {"prompt": "a red heart", "seed": 3, "width": 0, "height": 0, "nfe": 0, "batch": 1, "previews": 0}
    node = nodes["ArcFlowGenerate"]()
    (images,) = getattr(node, node.FUNCTION)(bundle=pipeline, **(defaults | options))
    return images


def saved(images: torch.Tensor) -> np.ndarray:
    """As ComfyUI's SaveImage makes pixels of an IMAGE."""
    return np.clip(255.0 * images.numpy(), 0, 255).astype(np.uint8)


def test_both_workflows_name_what_the_nodes_have(nodes: dict[str, Any]) -> None:
    api = json.loads((PACKAGE / "arcflow_api.json").read_text(encoding="utf-8"))
    shown = json.loads((PACKAGE / "example_workflows" / "arcflow.json").read_text(encoding="utf-8"))
    page = {node["type"]: node for node in shown["nodes"]}
    for node in api.values():
        if (kind := nodes.get(node["class_type"])) is None:
            continue
        wanted = kind.INPUT_TYPES()["required"]
        assert list(node["inputs"]) == list(wanted)
        values = [value for value in node["inputs"].values() if not isinstance(value, list)]
        control = ["fixed"] if "seed" in wanted else []  # The widget that the page puts after a seed.
        assert page[node["class_type"]]["widgets_values"] == values[:2] + control + values[2:]


def test_images_are_floats_from_which_the_pixels_come_back(nodes: dict[str, Any], tiny: Pipeline) -> None:
    images = generate(nodes, tiny, batch=3, width=96, height=64)
    assert (images.shape, images.dtype, images.device.type) == ((3, 64, 96, 3), torch.float32, "cpu")
    expected = tiny.generate("a red heart", seed=3, num_images=3, width=96, height=64).images
    assert np.array_equal(saved(images), np.stack(expected))


def test_every_pixel_value_survives() -> None:
    values = np.arange(256, dtype=np.uint8)
    assert np.array_equal(saved(torch.from_numpy(values.astype(np.float32) / 255)), values)


def test_previews_are_shown_as_they_are_made(nodes: dict[str, Any], tiny: Pipeline, comfyui: ComfyUI) -> None:
    """Of a batch the first image's; 17 images are two batches of this bundle."""
    generate(nodes, tiny, batch=17, previews=2)
    assert [update[:2] for update in comfyui.updates] == [(i, 8) for i in range(1, 9)]
    frames = [np.asarray(preview[1]) for _, _, preview in comfyui.updates if preview is not None]
    assert {preview[::2] for _, _, preview in comfyui.updates if preview is not None} == {("JPEG", 512)}
    expected = tiny.generate("a red heart", seed=3, num_images=17, previews=2).previews
    assert np.array_equal(frames, [preview.image for image in (0, 16) for preview in expected[image]])
    assert comfyui.updates[-1][2] is None, "the last evaluation comes after all previews"


@pytest.mark.parametrize("stop_at", [0, 2])
def test_an_interrupt_ends_the_generation(
    nodes: dict[str, Any], tiny: Pipeline, comfyui: ComfyUI, stop_at: int
) -> None:
    comfyui.stop_at = stop_at
    with pytest.raises(InterruptProcessingException):
        generate(nodes, tiny, nfe=4, previews=2)
    assert len(comfyui.updates) == stop_at
    comfyui.stop_at = None
    assert generate(nodes, tiny).shape == (1, 64, 64, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": " "}, "the prompt is empty"),
        ({"width": 1024}, "width is 1024; it must be from 32 to 128"),
        ({"nfe": 1000}, "nfe is 1000; it must be from 1 to 64"),
    ],
)
def test_what_the_bundle_does_not_take_is_told(
    nodes: dict[str, Any], tiny: Pipeline, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        generate(nodes, tiny, **options)


def test_a_cut_prompt_is_told_in_the_log(
    nodes: dict[str, Any], tiny: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    generate(nodes, tiny, prompt="a red heart " * 30)
    assert "ArcFlow: " in caplog.text


def test_styles_are_chosen_by_name(
    nodes: dict[str, Any], comfyui: ComfyUI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder with bundles in it is a style, in ComfyUI's model folders and in those of $ARCFLOW_ENGINES."""
    for folder in (comfyui.models / "arcflow" / "ink", tmp_path / "more", tmp_path / "more" / "oil"):
        folder.mkdir(parents=True)
        (folder / TINY).symlink_to(BUILT_IN / TINY)
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "more"))
    loader = nodes["ArcFlowLoadBundle"]
    assert loader.INPUT_TYPES()["required"]["bundle"][0] == [TINY, f"ink/{TINY}", f"oil/{TINY}"]
    (pipeline,) = loader().load(f"ink/{TINY}", "auto", False)
    assert pipeline.manifest.model == "tiny" and comfyui.unloaded == 0
    with pytest.raises(BundleNotFoundError, match=f"there is no bundle 'wax/{TINY}'; available: {TINY}, ink/{TINY}, "):
        loader().load(f"wax/{TINY}", "auto", False)


def test_a_bundle_under_another_ones_name_is_rejected(nodes: dict[str, Any], comfyui: ComfyUI, tmp_path: Path) -> None:
    folder = comfyui.models / "arcflow" / "flux-fp8-sm89"
    folder.parent.mkdir(parents=True)
    folder.symlink_to(BUILT_IN / TINY)
    with pytest.raises(BundleError, match="is tiny-fp16-cpu, but 'fp8' was asked for"):
        nodes["ArcFlowLoadBundle"]().load(folder.name, "auto", False)
    assert comfyui.unloaded == 1, "what is for a GPU finds it empty of ComfyUI's models"


def test_options_for_plans_are_rejected_for_others(nodes: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="low_vram is for TensorRT plans"):
        nodes["ArcFlowLoadBundle"]().load(TINY, "cpu", True)


def test_a_bundle_that_is_built_again_is_loaded_again(nodes: dict[str, Any], comfyui: ComfyUI) -> None:
    folder = comfyui.models / "arcflow" / "tiny-fp16-cpu"
    folder.mkdir(parents=True)
    loader, seen = nodes["ArcFlowLoadBundle"], []
    for content in ("a", "a", "b"):
        (folder / "manifest.json").write_text(content, encoding="utf-8")
        seen.append(loader.IS_CHANGED("tiny-fp16-cpu", "auto", False))
    assert seen[0] == seen[1] != seen[2]


def test_importing_the_package_imports_nothing_heavy(comfyui: ComfyUI) -> None:
    """And without an installed ArcFlow it finds the clone that it is linked from."""
    program = (
        "import importlib.util, sys, types\n"
        "sys.modules['folder_paths'] = f = types.ModuleType('folder_paths')\n"
        "f.models_dir, f.add_model_folder_path = '.', lambda *_: None\n"
        f"spec = importlib.util.spec_from_file_location('arcflow_nodes', {str(PACKAGE / '__init__.py')!r})\n"
        "sys.modules['arcflow_nodes'] = module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "heavy = {'torch', 'numpy', 'onnxruntime', 'tokenizers', 'PIL', 'runtime'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "print(importlib.util.find_spec('engines').origin)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-S", "-c", program], env=environment, cwd="/", capture_output=True)
    assert done.stdout.decode().strip() == str(ROOT / "engines" / "__init__.py"), done.stderr.decode()


def test_without_arcflow_the_import_says_what_to_do(tmp_path: Path) -> None:
    copy = tmp_path / "custom_nodes" / "arcflow"
    copy.mkdir(parents=True)
    for file in PACKAGE.glob("*.py"):
        (copy / file.name).write_bytes(file.read_bytes())
    program = "import arcflow"
    environment = {"PYTHONPATH": str(copy.parent)}
    done = subprocess.run([sys.executable, "-S", "-c", program], env=environment, cwd="/", capture_output=True)
    assert b"ImportError: ArcFlow is not installed for ComfyUI's Python" in done.stderr


def test_requirements_are_those_of_the_runtime() -> None:
    runtime = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    lines = (PACKAGE / "requirements.txt").read_text(encoding="utf-8").splitlines()
    named = tomllib.loads((PACKAGE / "pyproject.toml").read_text(encoding="utf-8"))
    assert [line for line in lines if not line.startswith("#")] == runtime == named["project"]["dependencies"]
    assert named["tool"]["comfy"]["DisplayName"] == "ArcFlow"
