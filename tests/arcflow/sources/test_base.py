"""A teacher's pipeline is checked by its headers, then its backbone opened strictly and where it belongs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from arcflow.errors import BackboneError, SourceError
from arcflow.sources.base import find_base
from arcflow.sources.weights import open_backbone
from foundation.errors import ArcFlowError
from tests.export.pipelines import small_flux, small_qwen

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {"flux": small_flux(root / "flux").base, "qwen": small_qwen(root / "qwen").base}


@pytest.mark.parametrize("name", ["flux", "qwen"])
@pytest.mark.parametrize("frozen", ["fp32", "bf16"])
def test_a_backbone_of_shards_is_opened_frozen(folders: dict[str, Path], name: str, frozen: str) -> None:
    base = find_base(folders[name], name)
    backbone = open_backbone(base, frozen, CPU)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[frozen]
    assert not backbone.training and not any(p.requires_grad for p in backbone.parameters())
    wanted = {k: v for f in (folders[name] / "transformer").glob("*.safetensors") for k, v in load_file(f).items()}
    found = backbone.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], value.to(dtype)) for key, value in wanted.items())
    assert [tuple(p.shape) for p in base.blank().parameters()] == [tuple(p.shape) for p in backbone.parameters()]


@pytest.mark.parametrize("name", ["flux", "qwen"])
def test_the_grid_is_of_tokens_of_sixteen_pixels(folders: dict[str, Path], name: str) -> None:
    base = find_base(folders[name], name)
    assert base.grid(1344, 768) == (48, 84)
    with pytest.raises(BackboneError, match="multiples of 16"):
        base.grid(1000, 1024)


def edit(path: str, **changes: Any) -> Callable[[Path], object]:
    """Change a JSON file; None takes a key out."""

    def apply(folder: Path) -> None:
        data = json.loads((folder / path).read_text())
        data = {key: value for key, value in {**data, **changes}.items() if value is not None}
        (folder / path).write_text(json.dumps(data))

    return apply


def first_shard(folder: Path) -> Path:
    return min((folder / "transformer").glob("*.safetensors"))


def shorten(folder: Path) -> None:
    first_shard(folder).write_bytes(first_shard(folder).read_bytes()[:-9])


def reshape(folder: Path) -> None:
    tensors = load_file(first_shard(folder))
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 2)
    tensors[name] = tensors[name][:-1].contiguous()
    save_file(tensors, first_shard(folder), metadata={"format": "pt"})


def lose(folder: Path) -> None:
    """Leave a tensor out of a shard and of the index."""
    tensors = load_file(first_shard(folder))
    name = min(tensors)
    save_file({k: v for k, v in tensors.items() if k != name}, first_shard(folder), metadata={"format": "pt"})
    index = folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    data = json.loads(index.read_text())
    del data["weight_map"][name]
    index.write_text(json.dumps(data))


CONFIG, INDEX = "transformer/config.json", "transformer/diffusion_pytorch_model.safetensors.index.json"
FAULTS: dict[str, tuple[Callable[[Path], object], type[ArcFlowError], str]] = {
    "no pipeline": (lambda f: (f / "model_index.json").unlink(), SourceError, "no diffusers pipeline"),
    "another pipeline": (edit("model_index.json", _class_name="QwenImagePipeline"), BackboneError, "another --recipe"),
    "a strange pipeline": (edit("model_index.json", _class_name="Foo"), BackboneError, "is a Foo; allowed are"),
    "broken index": (lambda f: (f / "model_index.json").write_text("{"), BackboneError, "cannot read"),
    "no VAE": (lambda f: shutil.rmtree(f / "vae"), BackboneError, "the base lacks .*vae"),
    "another VAE": (edit("vae/config.json", block_out_channels=None), BackboneError, "no VAE of flux"),
    "no transformer": (lambda f: shutil.rmtree(f / "transformer"), BackboneError, "the base lacks .*transformer"),
    "no guidance": (edit(CONFIG, guidance_embeds=False), BackboneError, "guidance_embeds is not true"),
    "nonsense": (edit(CONFIG, num_layers="many"), BackboneError, "describes no transformer of flux"),
    "a shard is missing": (lambda f: first_shard(f).unlink(), BackboneError, "lacks diffusion_pytorch_model-00001"),
    "an empty index": (edit(INDEX, weight_map={}), BackboneError, "names no shards"),
    "a short shard": (shorten, BackboneError, "damaged or truncated"),
    "another shape": (reshape, BackboneError, "has in another shape"),
    "a lost tensor": (lose, BackboneError, "transformer lacks "),
    "fewer layers": (edit(CONFIG, num_layers=1), BackboneError, "does not describe transformer_blocks.1.* more"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_with_a_base_is_said(folders: dict[str, Path], tmp_path: Path, fault: str) -> None:
    damage, kind, words = FAULTS[fault]
    folder = tmp_path / "base"
    shutil.copytree(folders["flux"], folder)
    damage(folder)
    with pytest.raises(kind, match=words):
        find_base(folder, "flux")


def test_nothing_at_all_is_said(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="there is no base model at"):
        find_base(tmp_path / "none", "flux")
