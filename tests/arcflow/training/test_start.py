"""What a distillation starts from (a base, one with a LoRA merged, an adapter), and which weights it leaves."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from arcflow import distill
from arcflow.adapter import WEIGHTS_FILE, read_adapter, trained_tensors
from arcflow.distill import choose_base, choose_prompts, choose_start, distil
from arcflow.errors import BackboneError, CheckpointError
from arcflow.recipe import StudentRecipe, load_recipe
from arcflow.sources.base import find_base
from arcflow.sources.pipeline import open_pipeline
from arcflow.sources.weights import empty_backbone, fill
from arcflow.students import Student
from arcflow.training.run import choose_accelerator, prepare
from foundation.cli import run
from tests.export.pipelines import CAPTIONS, MODES, RANK, Sources, small_flux, small_qwen

FAMILIES: dict[str, Callable[[Path], Sources]] = {"flux": small_flux, "qwen": small_qwen}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders ``flux`` and ``qwen``: a pipeline, an adapter in the published layout, and a recipe that fits it."""
    root = tmp_path_factory.mktemp("made")
    for name, make in FAMILIES.items():
        make(root / name)
        (root / name / "prompts.txt").write_text("\n".join(CAPTIONS), encoding="utf-8")
        write_recipe(root / name)
    return root


def write_recipe(folder: Path, rank: int = RANK, modes: int = MODES, name: str = "small.toml") -> Path:
    (folder / name).write_text(
        f"extends = '{folder.name}'\nname = 'small'\nbase = '{folder / 'base'}'\n"
        f"[student]\nrank = {rank}\nmodes = {modes}\n[distill]\nprompts = ['{folder / 'prompts.txt'}']\n"
        "text_tokens = 16\nsizes = ['32x32']\ncheckpointing = false\n"
        "loop = { iterations = 3, batch = 2, micro_batch = 2, lr = 1e-2, warmup = 0, save_every = 1 }\n"
    )
    return folder / name


def written(folder: Path) -> dict[str, int]:
    """When each file of a folder was written."""
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.rglob("*")}


def plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("transformer."): tensor.float() for name, tensor in tensors.items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_student_starts_from_an_adapter(made: Path, name: str) -> None:
    recipe = load_recipe(str(made / name / "small.toml"))
    base, prompts = choose_base(recipe, None, Path()), choose_prompts(recipe)
    start = choose_start(base, recipe.student, made / name / "adapter")
    ready = prepare(recipe, base, prompts, recipe.student, choose_accelerator("cpu"), start=start)
    found = trained_tensors(ready.student)
    wanted = plain(load_file(made / name / "adapter" / WEIGHTS_FILE))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert all(tensor.requires_grad and tensor.dtype is torch.float32 for tensor in found.values())


def test_a_run_is_continued_from_its_own_start_alone(made: Path, tmp_path: Path) -> None:
    recipe = load_recipe(str(made / "flux" / "small.toml"))
    base, prompts = choose_base(recipe, None, Path()), choose_prompts(recipe)

    def go(source: Path | None, stop_after: int) -> None:
        start = choose_start(base, recipe.student, source)
        work, out = tmp_path / "work", tmp_path / "out"
        distil(recipe, base, prompts, recipe.student, work, out, start=start, stop_after=stop_after)

    first, other, moved = made / "flux" / "adapter", tmp_path / "other", tmp_path / "moved"
    for folder in (other, moved):
        shutil.copytree(first, folder)
    tensors = load_file(first / WEIGHTS_FILE)
    save_file({f"transformer.{name}": tensor for name, tensor in tensors.items()}, moved / WEIGHTS_FILE)
    save_file(tensors | {"norm_out.linear.bias": tensors["norm_out.linear.bias"] + 1}, other / WEIGHTS_FILE)
    go(first, 1)
    for source in (None, other):
        with pytest.raises(CheckpointError, match="belongs to a run with other settings"):
            go(source, 2)
    go(moved, 2)


def _rewritten(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], list[str]]:
    def options(folder: Path) -> list[str]:
        tensors = load_file(folder / "adapter" / WEIGHTS_FILE)
        change(tensors)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "adapter" / WEIGHTS_FILE)
        return []

    return options


def _recipe(rank: int, modes: int) -> Callable[[Path], list[str]]:
    return lambda folder: ["--recipe", str(write_recipe(folder, rank, modes))]


PAIR = "single_transformer_blocks.0.proj_mlp.lora_"
MISFITS: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "rank": (_recipe(RANK + 1, MODES), "has LoRA of rank 4, and the student 5: set rank = 4 under [student]"),
    "modes": (_recipe(RANK, 2), "has modes = 3, and the student 2: set modes = 3 under [student]"),
    "linear": (lambda folder: ["--student", "linear"], "set modes = 3 under [student] of the recipe; --student linear"),
    "architecture": (
        lambda folder: ["--init", str(folder.parent / "qwen" / "adapter")],
        "is an adapter for ArcQwenImageTransformer2DModel, and the recipe's architecture is flux",
    ),
    "a pair too few": (
        _rewritten(lambda t: [t.pop(f"{PAIR}{part}.weight") for part in "AB"]), f"lacks {PAIR}A.weight, {PAIR}B",
    ),
    "ranks": (
        _rewritten(lambda t: t.update({f"{PAIR}A.weight": torch.zeros(2, 32), f"{PAIR}B.weight": torch.zeros(128, 2)})),
        "has LoRA of ranks 2, 4",
    ),
    "another layer": (
        _rewritten(lambda t: t.update({f"x.lora_{part}.weight": torch.zeros(RANK, RANK) for part in "AB"})),
        "has, and students of this base do not train, x.lora_A.weight",
    ),
    "shape": (
        _rewritten(lambda t: t.update({"norm_out.linear.bias": torch.zeros(3)})),
        "has in another shape norm_out.linear.bias",
    ),
    "nothing": (lambda folder: ["--init", "nowhere"], "there is no adapter at nowhere"),
}  # fmt: skip


@pytest.mark.parametrize("what", MISFITS)
def test_an_adapter_that_does_not_fit_is_one_line_and_exit_2(
    what: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, words = MISFITS[what]
    for name in FAMILIES:
        shutil.copytree(made / name / "adapter", tmp_path / name / "adapter")
    (tmp_path / "flux" / "base").symlink_to(made / "flux" / "base")
    shutil.copy(made / "flux" / "prompts.txt", tmp_path / "flux")
    recipe, work = str(write_recipe(tmp_path / "flux")), str(tmp_path / "work")
    options = change(tmp_path / "flux")
    arguments = ["--recipe", recipe, "--init", str(tmp_path / "flux" / "adapter"), "--device", "cpu"]
    assert run(distill.main, [*arguments, "--workdir", work, *options]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and words in message and not Path(work).exists()


def test_a_finished_run_writes_the_other_weights_at_once(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--recipe", str(made / "flux" / "small.toml"), "--device", "cpu", "--workdir", str(tmp_path / "work")]
    assert run(distill.main, command) == 0
    state = tmp_path / "work" / "distill-arcflow" / "checkpoints"
    before = written(state)
    last = tmp_path / "last"
    assert run(distill.main, [*command, "--out", str(last), "--weights", "last"]) == 0
    assert run(distill.main, [*command, "--out", str(tmp_path / "again")]) == 0
    assert before and written(state) == before, "it has trained again"
    average = tmp_path / "work" / "arcflow-adapter"
    assert (average / WEIGHTS_FILE).read_bytes() == (tmp_path / "again" / WEIGHTS_FILE).read_bytes()
    recipe = load_recipe(str(made / "flux" / "small.toml"))
    base, prompts = choose_base(recipe, None, Path()), choose_prompts(recipe)
    stopped = distil(recipe, base, prompts, recipe.student, tmp_path / "again-work", tmp_path / "none", stop_after=3)
    for folder, same in ((last, True), (average, False)):
        head = read_adapter(folder).whole["proj_out_means.weight"]
        assert torch.equal(head, trained_tensors(stopped)["proj_out_means.weight"].bfloat16()) is same
    assert "those of the last iteration" in (last / "README.md").read_text()
    assert "averaged over training" in (average / "README.md").read_text()
    capsys.readouterr()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_base_in_any_precision_has_the_same_start(made: Path, name: str) -> None:
    base = find_base(str(made / name / "base"), name)
    starts = []
    for frozen in ("fp32", "bf16", "fp8"):
        backbone = empty_backbone(base, frozen)
        fill(backbone, base, torch.device("cpu"))
        torch.manual_seed(3)
        starts.append(trained_tensors(Student(backbone, StudentRecipe(rank=4, modes=3), name)))
    full, *others = ({key: tensor for key, tensor in start.items() if ".lora_" in key} for start in starts)
    for other in others:
        assert full.keys() == other.keys()
        assert all(torch.equal(full[key], other[key]) and other[key].dtype is torch.float32 for key in full)
    drawn = torch.cat([tensor.detach().flatten() for key, tensor in full.items() if ".lora_A" in key])
    assert float(drawn.std()) == pytest.approx(1 / 4, rel=0.05)
    assert not torch.equal(drawn, drawn.bfloat16().float())
    assert not any(tensor.any() for key, tensor in full.items() if ".lora_B" in key)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_base_with_a_lora_merged(made: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = open_pipeline(made / name / "base", torch.float32)
    before = {key: tensor.clone() for key, tensor in pipe.transformer.state_dict().items()}
    layer = "transformer_blocks.0.attn.to_q"
    rows, columns = before[f"{layer}.weight"].shape
    a, b = torch.full((2, columns), 0.25), torch.full((rows, 2), 0.5)
    names = (f"transformer.{layer}.lora_{part}.weight" for part in "AB")
    save_file(dict(zip(names, (a, b), strict=True)), tmp_path / "style.safetensors")
    pipe.load_lora_weights(tmp_path, weight_name="style.safetensors")
    pipe.fuse_lora()
    pipe.save_pretrained(tmp_path / "early")
    with pytest.raises(BackboneError, match=r"call unload_lora_weights\(\) after fuse_lora\(\)"):
        find_base(tmp_path / "early", name)
    pipe.unload_lora_weights()
    pipe.save_pretrained(tmp_path / "styled")
    base = find_base(tmp_path / "styled", name)
    backbone = empty_backbone(base, "fp32")
    fill(backbone, base, torch.device("cpu"))
    merged = backbone.state_dict()
    assert merged.keys() == before.keys()
    torch.testing.assert_close(merged.pop(f"{layer}.weight"), before[f"{layer}.weight"] + b @ a)
    assert all(torch.equal(tensor, before[key]) for key, tensor in merged.items())
    recipe = str(made / name / "small.toml")
    options = ["--base", str(tmp_path / "styled"), "--iterations", "1", "--workdir", str(tmp_path / "work")]
    assert run(distill.main, ["--recipe", recipe, "--device", "cpu", *options]) == 0
    assert "`styled`" in (tmp_path / "work" / "arcflow-adapter" / "README.md").read_text()
    capsys.readouterr()
