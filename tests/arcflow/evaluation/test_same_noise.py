"""``python -m arcflow.evaluate`` where the teacher is downloaded: figures, what resumes, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from arcflow import evaluate
from arcflow.adapter import read_adapter
from arcflow.evaluation import same_noise
from arcflow.evaluation.endpoints import Endpoints
from arcflow.evaluation.figures import measure
from arcflow.evaluation.same_noise import STUDENT, TEACHER, Wanted, evaluations, sample
from arcflow.pipelines.generation import open_generator
from arcflow.sources.base import find_base
from foundation.cli import run
from tests.export.pipelines import Sources

CPU = torch.device("cpu")
PROMPTS = ("a dark bag on the table", "one light boot, red")
SEED, STEPS, SIDE, TOKENS = 3, 16, 64, 16


def wanted(name: str, sources: Sources, **more: object) -> Wanted:
    given = {"adapter_digest": "one", "prompts": PROMPTS, "seeds": 2, "nfe": (2, 4), "dtype": torch.float32, **more}
    return Wanted(
        find_base(sources.base, name), read_adapter(sources.adapter), first_seed=SEED, size=(SIDE, SIDE),
        steps=STEPS, tokens=TOKENS, device=CPU, **given,
    )  # fmt: skip


def quietly(*_: object) -> None:
    """Nobody looks."""


def test_the_student_is_the_one_that_is_sampled(family: tuple[str, Sources], tmp_path: Path) -> None:
    """Its images are those of diffusers' pipeline, and the teacher comes nearer to its own end with more steps."""
    name, sources = family
    what = wanted(name, sources)
    found = measure(what, sample(what, Endpoints(tmp_path), quietly), None, quietly)
    generator = open_generator(
        what.base, sources.adapter, device=CPU, dtype=torch.float32, size=(SIDE, SIDE), tokens=TOKENS
    )
    for prompt, shown in zip(range(2), found.first_images[STUDENT, 2], strict=True):
        image = np.asarray(generator.image(PROMPTS[prompt], SEED + 2 * prompt)).astype(int)
        assert np.abs(image - shown).max() <= 1
    teacher = found.figures[TEACHER]
    assert 0 < teacher["4"]["rel_l2"] < teacher["2"]["rel_l2"] and teacher["4"]["psnr_db"] > teacher["2"]["psnr_db"]
    assert found.figures[STUDENT]["2"]["rel_l2"] > 10 * teacher["4"]["rel_l2"] / 3, "it was never trained"
    assert teacher[str(STEPS)]["rel_l2"] is None and teacher[str(STEPS)]["diversity"] > 0
    assert found.figures["gain_over_euler"]["2"]["won"] == 0.0
    assert evaluations(what) == {TEACHER: 4 * 22 * (2 if name == "qwen" else 1), STUDENT: 4 * 6}


def test_half_precision_is_close(family: tuple[str, Sources], tmp_path: Path) -> None:
    """In bfloat16 the solver stays in float32: the teacher's steps end near those of float32."""
    name, sources = family
    ends = [
        sample(wanted(name, sources, seeds=1, nfe=(2,), dtype=dtype), Endpoints(tmp_path), quietly)
        for dtype in (torch.float32, torch.bfloat16)
    ]
    for sampler in ends[0]:
        exact, rounded = (torch.stack([end.x for end in each[sampler]]) for each in ends)
        assert rounded.dtype == torch.float32 and (exact - rounded).norm() < 0.05 * exact.norm(), sampler


def test_another_adapter_finds_the_teacher_s_endpoints(
    flux: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    what, store = wanted("flux", flux, seeds=1, nfe=(2,)), Endpoints(tmp_path)
    first = sample(what, store, quietly)
    monkeypatch.delattr(same_noise, "sample_teacher")
    other = sample(wanted("flux", flux, seeds=1, nfe=(2,), adapter_digest="another"), store, quietly)
    files = list(tmp_path.iterdir())
    assert len(files) == 2 * (2 + 2)
    for sampler, ends in first.items():
        assert all(torch.equal(a.x, b.x) for a, b in zip(ends, other[sampler], strict=True))
    files[0].write_bytes(files[0].read_bytes()[:100])
    monkeypatch.undo()
    again = sample(what, store, quietly)  # What was damaged is made again, to the bit.
    assert all(torch.equal(a.x, b.x) for key in first for a, b in zip(first[key], again[key], strict=True))
    monkeypatch.setattr(same_noise, "merge_into", None)
    monkeypatch.setattr(same_noise._Networks, "teacher", None)
    assert sample(what, store, quietly).keys() == first.keys(), "all is there: no backbone is read"


def test_the_command_writes_figures_and_a_grid(
    flux: Sources, vision: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--recipe", "flux", "--base", str(flux.base), "--adapter", str(flux.adapter), "--device", "cpu"]
    given += ["--size", "64x48", "--text-tokens", "16", "--steps", "6", "--num", "2", "--seeds", "2", "--seed", "5"]
    given += ["--features", str(vision), "--workdir", str(tmp_path / "w"), "--out", str(tmp_path / "e")]
    assert run(evaluate.main, [*given, "--json"]) == 0
    said = capsys.readouterr()
    report = json.loads(said.out)
    assert report == json.loads((tmp_path / "e" / "evaluation.json").read_text())
    assert "2 prompts, 2 noises each, 64x48: 32 evaluations of the teacher and 8 of the student" in said.err
    assert set(report["student"]) == {"2"} and set(report["teacher"]) == {"2", "6"}
    row = report["student"]["2"]
    assert set(row) == {"rel_l2", "psnr_db", "feature_distance", "diversity", "seconds"}
    assert all(isinstance(value, float) for value in row.values())
    assert report["dtype"] == "bfloat16" and report["first_seed"] == 5 and len(report["prompts"]) == 2
    assert (tmp_path / "e" / "grid.png").read_bytes().startswith(b"\x89PNG")
    assert run(evaluate.main, given) == 0
    assert "sampler  NFE" in capsys.readouterr().out


def test_what_does_not_fit_is_refused_first(flux: Sources, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before a weight is read and a folder made, in one line."""
    odd = Path(shutil.copytree(flux.adapter, tmp_path / "odd"))
    config = json.loads((odd / "config.json").read_text())
    (odd / "config.json").write_text(json.dumps({**config, "num_gaussians": config["num_gaussians"] + 1}))
    sources = ["--recipe", "flux", "--base", str(flux.base), "--workdir", str(tmp_path / "w")]
    for more, words in (
        (["--adapter", str(odd)], "proj_out.means.weight has shape"),
        (["--adapter", str(flux.adapter), "--size", "40x40"], "both sides must be multiples of 16"),
        (["--adapter", str(flux.adapter), "--nfe", "100"], "less than --steps"),
        (["--adapter", str(flux.adapter), "--features", str(odd)], "lacks preprocessor_config.json"),
    ):
        assert run(evaluate.main, [*sources, *more]) == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and words in errors[0]
    assert [path.name for path in tmp_path.iterdir()] == ["odd"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--recipe", "qwen", "--classifier", "c"], "--classifier is not for qwen"),
        (["--features", "f"], "--features is not for tiny"),
        (["--recipe", "flux", "--seeds", "0"], "--seeds is 0: it must be at least 1"),
        (["--recipe", "flux", "--seed", str(2**64)], "it must be at most 2^64 - 1"),
        (["--recipe", "flux", "--nfe", "0"], "--nfe must be at least 1"),
        (["--recipe", "flux", "--size", "64"], "write WIDTHxHEIGHT in pixels"),
        (["--recipe", "flux", "--metadata", "m"], "--metadata is not for flux"),
        (["--recipe", "flux", "--images", "dpg"], "--images needs --metadata"),
        (["--images", "dpg", "--metadata", "m", "--size", "64x32"], "as wide as high"),
        (["--images", "dpg", "--metadata", "m", "--num", "2"], "--num is not for --images"),
        (["--images", "geneval", "--metadata", "m", "--nfe", "2", "4"], "one number of evaluations"),
        (["--images", "geneval", "--metadata", "nowhere"], "cannot read nowhere"),
        (["--images", "dpg", "--metadata", "nowhere"], "nowhere holds no prompts"),
    ],
)
def test_options_that_cannot_be(options: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(evaluate.main, options) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
