"""Requests of several callers through one pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.locate import BUILT_IN
from foundation.errors import ArcFlowError
from integrations.batching import Job, Made, Wanted, batches, work
from runtime import Pipeline
from runtime.errors import RequestError
from runtime.result import Preview

TINY = BUILT_IN / "tiny-fp16-cpu"
PROMPT = "a smiling face with sunglasses"


class Caller:
    """Collects what a job becomes."""

    def __init__(self, prompt: str = PROMPT, *seeds: int, leaves_at: int | None = None, **shape: int) -> None:
        self.made: list[Made | ArcFlowError] = []
        self.frames: list[tuple[int, Preview]] = []
        self.asked = 0
        self.leaves_at = leaves_at
        wanted = Wanted(prompt, seeds or (0,), **{"width": 64, "height": 64, "nfe": 2, **shape})
        self.job = Job(wanted, self.made.append, self.gone, lambda place, frame: self.frames.append((place, frame)))

    def gone(self) -> bool:
        self.asked += 1
        return self.leaves_at is not None and self.asked >= self.leaves_at

    def images(self) -> Made:
        (made,) = self.made
        assert isinstance(made, Made)
        return made


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.open(TINY, threads=1)


def close(one: Any, other: Any) -> bool:
    """In a shared batch a product's last bit may differ, and with it a pixel by one step."""
    return bool(abs(one.astype(int) - other).max() <= 1)


def test_a_lone_request_is_the_commands_file(pipeline: Pipeline, tmp_path: Path) -> None:
    caller = Caller(PROMPT, 7)
    work(pipeline, [caller.job])
    (file,) = pipeline.generate(PROMPT, seed=7).save(tmp_path / "face.png")
    assert caller.images().png(0) == file.read_bytes()


def test_callers_share_a_batch_and_keep_their_seeds(pipeline: Pipeline) -> None:
    callers = [Caller(PROMPT, 9, 10), Caller("a red apple", 3), Caller(PROMPT, 5, width=96)]
    work(pipeline, [caller.job for caller in callers])
    assert [caller.images().batch for caller in callers] == [3, 3, 1]
    for caller in callers:
        wanted = caller.job.wanted
        for seed, image in zip(wanted.seeds, caller.images().images, strict=True):
            assert close(image, pipeline.generate(wanted.prompt, seed=seed, width=wanted.width).images[0])
    assert [one["seed"] for one in callers[0].images().settings] == [9, 10]


def test_frames_go_to_whom_they_belong(pipeline: Pipeline) -> None:
    callers = [Caller(PROMPT, 1, 2, previews=2), Caller("a red apple", 3, previews=2)]
    work(pipeline, [caller.job for caller in callers])
    assert [place for place, _ in callers[0].frames] == [0, 1, 0, 1]
    expected = pipeline.generate("a red apple", seed=3, previews=2).previews[0]
    for (_, frame), preview in zip(callers[1].frames, expected, strict=True):
        assert frame.sigma == preview.sigma
        assert close(frame.image, preview.image)


def test_frames_that_the_caller_has_are_not_sent_again(pipeline: Pipeline) -> None:
    first, again = Caller(PROMPT, 1, previews=3), Caller(PROMPT, 1, previews=3)
    again.job.told = 2
    work(pipeline, [first.job])
    work(pipeline, [again.job])
    assert [frame.sigma for _, frame in again.frames] == [first.frames[2][1].sigma]
    assert again.job.wanted.settings(pipeline.manifest) == first.images().settings


def test_a_batch_holds_what_the_bundle_takes() -> None:
    jobs = [Caller(PROMPT, *range(count)).job for count in (2, 1, 3, 9, 1)]
    assert [[len(job.wanted.seeds) for job in batch] for batch in batches(jobs, 4)] == [[2, 1], [3], [9], [1]]


def test_who_left_is_neither_generated_for_nor_told(pipeline: Pipeline) -> None:
    left, stayed = Caller(leaves_at=1), Caller(PROMPT, 4)
    work(pipeline, [left.job, stayed.job])
    assert left.made == []
    assert stayed.images().batch == 1
    # Gone after the first of 64 evaluations: the batch ends there.
    leaving = Caller(leaves_at=2, nfe=64)
    work(pipeline, [leaving.job])
    assert (leaving.made, leaving.asked) == ([], 2)


def test_one_bad_request_spoils_no_other(pipeline: Pipeline) -> None:
    good, bad = Caller(PROMPT, 4, previews=1), Caller(" ", 5, previews=1)
    work(pipeline, [good.job, bad.job])
    np.testing.assert_array_equal(good.images().images[0], pipeline.generate(PROMPT, seed=4).images[0])
    assert len(good.frames) == 1
    assert isinstance(bad.made[0], RequestError)
