"""Whole studies, small: runs that are interrupted, shared and told; what depends on what; what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from arcflow.distill import choose_base, choose_prompts
from arcflow.errors import RecipeError
from arcflow.field import MomentumField
from arcflow.recipe import Recipe
from arcflow.students import Student
from arcflow.study import main
from arcflow.studying.ledger import locked
from arcflow.studying.measuring import GAMMA_EDGES, bands, weights_by_gamma
from arcflow.studying.reference import open_reference
from arcflow.studying.runner import Study, decide_precision, expected_seconds
from arcflow.studying.subject import Subject
from arcflow.studying.trial import Trial, train
from arcflow.studying.variants import variants
from arcflow.tiny import judging
from arcflow.tiny.judging import Judge
from foundation.cli import run

PROMPTS = ("a woman astronaut", "a dog", "a tiger")


def judge(count: int = 6) -> Judge:
    """A judge that needs no data set: means of quarters of an image as features, their greatest as the class."""

    def classify(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = torch.nn.functional.adaptive_avg_pool2d(images.mean(dim=1, keepdim=True), 2).flatten(1)
        return features, features

    g = torch.Generator().manual_seed(0)
    prompts = tuple(PROMPTS[number % 3] for number in range(count))
    return Judge(prompts, torch.arange(count) % 4, classify, torch.randn(20, 4, generator=g))


@pytest.fixture
def small(recipe: Recipe) -> Recipe:
    study = replace(
        recipe.study, iterations=4, batch=2, seeds=2, noises=6, diversity_prompts=2, diversity_noises=2, look_every=2,
        look_noises=2, pieces=8, mixture=2,
    )  # fmt: skip
    loop = replace(recipe.distill.loop, precision="fp32")
    distill = replace(recipe.distill, loop=loop, intermediate_states=2, substeps=16)
    evaluate = replace(recipe.evaluate, reference_steps=10, nfe=(1, 2))
    return replace(recipe, study=replace(study, several_nfe=(1, 2)), distill=distill, evaluate=evaluate)


def subject_of(recipe: Recipe, teacher: Path, folder: Path) -> Subject:
    return Subject(recipe, choose_base(recipe, teacher, folder), choose_prompts(recipe), judge(), "fp32")


def trained(trial: Trial) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trial.student.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("name", ["piecewise-midpoint", "pi-flow", "full-0.1", "in-fp8"])
def test_an_interrupted_run_goes_on_to_the_same_bits(
    small: Recipe, teacher_path: Path, tmp_path: Path, name: str
) -> None:
    subject = subject_of(small, teacher_path, tmp_path)
    reference = open_reference(subject, tmp_path, lambda *_: None)
    variant = variants(small)[name]
    whole = train(subject, reference, variant, 1, tmp_path / "a")
    train(subject, reference, variant, 1, tmp_path / "b", stop_after=3)
    goes_on = train(subject, reference, variant, 1, tmp_path / "b")
    one, other = trained(whole), trained(goes_on)
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert [(done, error) for done, _, error in whole.curve] == [(done, error) for done, _, error in goes_on.curve]
    assert [done for done, *_ in whole.curve] == [2, 4] and whole.seconds > 0
    again = train(subject, reference, variant, 1, tmp_path / "b")
    assert again.curve == goes_on.curve, "where nothing is left to do, the curve is still known"


@pytest.mark.slow
def test_a_whole_study(
    small: Recipe,
    teacher_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "small.toml"
    path.write_text(
        "extends = 'tiny'\nname = 'small'\n[student]\nrank = 2\nmodes = 3\n[distill]\nintermediate_states = 2\n"
        "substeps = 16\nloop = { precision = 'auto' }\n[evaluate]\nreference_steps = 10\nnfe = [1, 2]\n"
        "[study]\niterations = 4\nbatch = 2\nseeds = 2\nnoises = 6\ndiversity_prompts = 2\ndiversity_noises = 2\n"
        "look_every = 2\nlook_noises = 2\npieces = 8\nmixture = 2\nseveral_nfe = [1, 2]\n"
    )
    monkeypatch.setattr(judging, "open_judge", lambda recipe, count, *_: judge(count))
    words = ["--recipe", str(path), "--workdir", str(tmp_path / "work"), "--teacher", str(teacher_path)]
    assert run(main, [*words, "--report"]) == 2
    assert "no run of this study is finished" in capsys.readouterr().err
    assert run(main, [*words, "--dry-run"]) == 0
    assert "32 of 32 runs are to be done" in capsys.readouterr().out

    some = [*words, "--variant", "arcflow", "linear", "--out", str(tmp_path / "out")]
    assert run(main, some) == 0
    told = capsys.readouterr()
    assert "curved beats straight" in told.out and "teacher: 10 steps" in told.out
    lines = (tmp_path / "work" / "study" / "runs.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["variant"] for line in lines) == ["arcflow"] * 2 + ["linear"] * 2 + ["teacher"]
    assert not list((tmp_path / "work" / "study" / "runs").iterdir()), "finished runs leave no checkpoints"
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "study.json", "study.md", "convergence.png", "heads.png", "bands.png", "gammas.png", "strip.webp",
    }  # fmt: skip

    assert run(main, [*some, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (tmp_path / "work" / "study" / "runs.jsonl").read_text().splitlines() == lines, "nothing is run twice"
    assert set(found["variants"]) == {"arcflow", "linear"} and found["machine"] and "--json" in found["command"]
    arcflow, linear = found["variants"]["arcflow"], found["variants"]["linear"]
    assert set(arcflow["few"]) == {"1", "2"} and arcflow["few"]["2"]["rel_l2"]["standard_error"] is not None
    assert arcflow["seeds"] == [0, 1] and [point[0] for point in arcflow["curves"][0]] == [2, 4]
    assert len(arcflow["gammas"]) == 2 and all(sum(w) == pytest.approx(1, abs=1e-4) for w in arcflow["gammas"])
    assert linear["gammas"] == [] and linear["trained"] < arcflow["trained"]
    assert arcflow["fp8_rel_l2"]["mean"] != arcflow["few"]["2"]["rel_l2"]["mean"]
    assert len(arcflow["bands"]) == 10 and arcflow["bands"][0][0] == 1.0 and arcflow["bands"][-1][1] == 0.0
    assert run(main, [*words, "--dry-run"]) == 0
    assert "28 of 32 runs are to be done" in capsys.readouterr().out


def test_a_run_in_work_is_passed_over_and_another_teacher_s_is_another(
    small: Recipe, teacher_path: Path, tmp_path: Path
) -> None:
    subject = subject_of(small, teacher_path, tmp_path)
    study = Study(subject, tmp_path / "study")
    linear = variants(small)["linear"]
    jobs = study.jobs([linear], 2)
    assert [job.name for job in jobs] == ["linear-0", "linear-1"] and jobs[0].key != jobs[1].key
    told: list[str] = []
    with locked(study.folder, jobs[0].key):
        assert study.work(jobs[:1], told.append) == jobs[:1]
    assert told == ["linear-0 is in work by another process: passed over"] and study.ledger.read() == {}

    assert subject.key(linear) != subject.key(variants(small)["arcflow"])
    assert subject.key(linear) == replace(subject, recipe=replace(small, study=replace(small.study, seeds=5))).key(
        linear
    )
    for other in (
        replace(subject, recipe=replace(small, shift=2.0)),
        replace(subject, precision="bf16"),
        replace(subject, prompts=["another"]),
        replace(subject, recipe=replace(small, study=replace(small.study, noises=7))),
    ):
        assert other.key(linear) != subject.key(linear)
    assert expected_seconds(subject, linear, []) > 0


def test_precision_is_decided_once(small: Recipe, teacher_path: Path, tmp_path: Path) -> None:
    base = choose_base(small, teacher_path, tmp_path)
    loop = replace(small.distill.loop, precision="auto")
    recipe = replace(small, distill=replace(small.distill, loop=loop))
    assert decide_precision(recipe, base, tmp_path, "bf16") == "bf16"
    assert decide_precision(small, base, tmp_path, None) == "fp32"
    (tmp_path / "precision").write_text("bf16\n")
    assert decide_precision(recipe, base, tmp_path, None) == "bf16"
    (tmp_path / "precision").unlink()
    assert decide_precision(recipe, base, tmp_path, None, keep=False) in ("fp32", "bf16")
    assert not (tmp_path / "precision").exists()


def test_only_a_teacher_of_one_s_own_is_studied(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, ["--recipe", "flux"]) == 2
    assert "its teacher is downloaded" in capsys.readouterr().err
    assert run(main, ["--recipe", "tiny", "--variant", "none"]) == 2
    assert "no variant 'none'" in capsys.readouterr().err
    with pytest.raises(RecipeError, match="seeds"):
        main(["--recipe", "tiny", "--seeds", "0"])


def test_bands_add_up_to_the_error_of_the_end() -> None:
    truth = {1.0: torch.zeros(1, 1, 2), 0.5: torch.tensor([[[3.0, 0.0]]]), 0.0: torch.tensor([[[3.0, 4.0]]])}
    path = {1.0: torch.zeros(1, 1, 2), 0.5: torch.tensor([[[3.5, 0.0]]]), 0.0: torch.tensor([[[3.5, 5.0]]])}
    assert bands(path, truth) == ((1.0, 0.5, 0.1), (0.5, 0.0, 0.2))


def test_the_gates_weight_is_counted_by_gamma() -> None:
    weights = torch.tensor([0.5, 0.3, 0.2])[None, None, :, None].expand(1, 1, 3, 4)
    rates = torch.tensor([-9.0, 0.9])[None, None, :, None].expand(1, 1, 2, 4)
    found = weights_by_gamma(MomentumField(torch.zeros(1, 1, 3, 4), weights.log(), rates))
    assert len(found) == len(GAMMA_EDGES) - 1
    where = {number: value for number, value in enumerate(found) if value}
    straight = next(i for i in range(len(found)) if GAMMA_EDGES[i] <= 0.0 < GAMMA_EDGES[i + 1])
    curved = next(i for i in range(len(found)) if GAMMA_EDGES[i] <= 0.9 < GAMMA_EDGES[i + 1])
    assert where == pytest.approx({0: 0.3, straight: 0.5, curved: 0.2})


def test_a_student_of_any_head_is_a_student(small: Recipe) -> None:
    from arcflow.studying.variants import method_of

    for variant in variants(small).values():
        assert issubclass(method_of(variant, small).student.func, Student)  # type: ignore[attr-defined]
