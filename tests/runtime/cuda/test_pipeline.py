"""The pipeline on a GPU, over a device of main memory and networks in ONNX Runtime: it gives what the CPU's gives.

What is tested is the order of work: what lies where and when, what is copied, recorded, kept and rejected.
"""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.bundle import Bundle, open_bundle
from engines.memory.card import ALLOWANCE, card_memory
from engines.schema import LEVELS_A_RUN, PlanMemory
from runtime.cuda.errors import CaptureRefusedError, DeviceMemoryError
from runtime.errors import BackendError, RequestError
from runtime.image import encode_png
from runtime.pipeline import Pipeline
from runtime.result import Generation, Step
from tests.runtime.cuda.onnx_engine import SCRATCH, Session
from tests.runtime.cuda.stand_in import StandInDevice

PROMPT = "a smiling face with sunglasses"


@pytest.fixture(scope="module")
def bundle(small: Path) -> Bundle:
    return open_bundle(small)


@pytest.fixture(scope="module")
def session(bundle: Bundle) -> Session:
    """A session that the tests of this file share: nothing may depend on what ran before."""
    return Session(bundle)


def _near(ours: Generation, cpu: Generation) -> None:
    """Latents to 1e-5 (the solver's exponentials are float32 on a GPU); bytes may differ where a value rounds."""
    np.testing.assert_allclose(ours.latents, cpu.latents, rtol=0, atol=1e-5)
    assert ours.settings == cpu.settings
    assert ours.warnings == cpu.warnings
    for one, two in zip(ours.images, cpu.images, strict=True):
        assert one.shape == two.shape
        difference = np.abs(one.astype(int) - two.astype(int))
        assert difference.max() <= 1
        assert (difference > 0).mean() < 1e-3


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"seed": 7, "num_images": 3, "width": 64, "height": 16},
        {"nfe": 1},
        {"nfe": 5, "num_images": 6},
        {"seed": (1 << 64) - 1, "num_images": 2, "width": 16, "height": 64},
    ],
)
def test_it_gives_what_the_cpu_gives(session: Session, pipeline: Pipeline, options: dict[str, Any]) -> None:
    for _ in range(3):  # Done, recorded, replayed.
        _near(session.pipeline.generate(PROMPT, **options), pipeline.generate(PROMPT, **options))


def test_the_embedded_model_gives_the_same_png(default_bundle: Path) -> None:
    ours = Session(open_bundle(default_bundle)).pipeline.generate(PROMPT, seed=5)
    cpu = Pipeline.open(default_bundle, threads=1).generate(PROMPT, seed=5)
    _near(ours, cpu)
    pngs = [encode_png(made.images[0], made.settings.of_image(0)) for made in (ours, cpu)]
    assert pngs[0] == pngs[1]


def test_several_prompts_some_of_them_the_same(session: Session, pipeline: Pipeline) -> None:
    prompts = ["a woman astronaut", "a frog", "a woman astronaut", "photo of a red apple", "a pizza"]
    _near(session.pipeline.generate(prompts, num_images=2, seed=3), pipeline.generate(prompts, num_images=2, seed=3))


def test_a_prompt_is_encoded_once(bundle: Bundle) -> None:
    session = Session(bundle)
    first = session.pipeline.generate([PROMPT, "a red apple", PROMPT], num_images=2)
    again = session.pipeline.generate([PROMPT, "a red apple", PROMPT], num_images=2)
    assert session.engines["clip"].batches == session.engines["t5"].batches == [1, 1]
    assert first.latents.tobytes() == again.latents.tobytes()
    session.pipeline.generate(["a frog", PROMPT])
    assert session.engines["clip"].batches == [1, 1, 1]


def test_what_is_cached_does_not_depend_on_the_company(bundle: Bundle) -> None:
    alone, after = Session(bundle).pipeline, Session(bundle).pipeline
    after.generate(["a red apple", PROMPT, "a frog"])
    assert alone.generate(PROMPT).latents.tobytes() == after.generate(PROMPT).latents.tobytes()


def test_more_prompts_than_are_cached(bundle: Bundle, pipeline: Pipeline) -> None:
    session = Session(bundle, embeddings=1)  # A batch needs four all the same.
    prompts = [f"a rose {number}" for number in range(9)]
    for _ in range(2):
        _near(session.pipeline.generate(prompts), pipeline.generate(prompts))
    assert sum(session.engines["t5"].batches) == 18, "the first are gone when the last come"
    of_text, of_sizes, rows = 4 * (256 + 12 * 64 * 4 + 12 * 32 * 4), 4 * (64 + 12) * 32 * 4, 4 * LEVELS_A_RUN * 128 * 4
    assert session.pipeline.memory()["embeddings"] == of_text + of_sizes + rows


def test_the_host_waits_only_for_the_end(bundle: Bundle) -> None:
    session = Session(bundle)
    made = session.pipeline.generate(PROMPT)
    log = session.device.log
    assert log.index("find_nonfinite") > max(place for place, name in enumerate(log) if name == "backbone")
    waited: list[str] = []
    session.device.log.clear()
    original = session.device.synchronize

    def synchronize() -> None:
        waited.append("wait")
        session.device.log.append("wait")
        original()

    session.device.synchronize = synchronize  # type: ignore[method-assign]
    session.pipeline.generate("another prompt")
    first = session.device.log.index("wait")
    assert session.device.log[:first] == [], "nothing had to run before the images were wanted"
    assert session.device.log.count("backbone") == made.settings.nfe


def test_it_is_recorded_once_a_shape(bundle: Bundle) -> None:
    session = Session(bundle)
    for _ in range(3):
        for width in (16, 32):
            session.pipeline.generate(PROMPT, width=width)
    assert session.device.log.count("recorded") == 2
    assert session.device.log.count("replayed") == 2
    assert session.engines["backbone"].bound == 2, "a context a shape, whatever the number of evaluations"


def test_a_refused_recording_costs_nothing_else(bundle: Bundle, pipeline: Pipeline) -> None:
    session = Session(bundle)
    session.device.refuse = "not today"
    for seed in range(4):
        made = session.pipeline.generate(PROMPT, seed=seed)
        _near(made, pipeline.generate(PROMPT, seed=seed))
        assert [span.stage for span in made.spans].count("backbone") == 2
    assert "replayed" not in session.device.log
    assert all("not today" in reason for reason in session.device.refusals.values())
    assert session.device.refusals


def test_a_recording_that_breaks_off_is_not_timed_twice(bundle: Bundle, pipeline: Pipeline) -> None:
    session = Session(bundle)
    enqueue = session.engines["vae_decoder"].enqueue

    def refuse(*arguments: Any) -> None:
        if session.device._recording is not None:
            raise CaptureRefusedError("a CUDA graph cannot hold it: this network")
        enqueue(*arguments)

    session.engines["vae_decoder"].enqueue = refuse  # type: ignore[method-assign]
    for seed in range(3):
        made = session.pipeline.generate(PROMPT, seed=seed)
        _near(made, pipeline.generate(PROMPT, seed=seed))
        assert [span.stage for span in made.spans].count("backbone") == 2


@pytest.mark.parametrize("run", range(3))
def test_stages_are_timed_on_the_device(session: Session, run: int) -> None:
    made = session.pipeline.generate(f"{PROMPT} {run}", nfe=3, num_images=5)
    batch = ["noise", *["backbone", "solver"] * 3, "vae"]
    stages = [span.stage for span in made.spans if span.stage not in ("tokenize", "text")]
    assert stages == batch * 2, "replayed or not"
    for stage, seconds in made.timings.items():
        assert seconds == pytest.approx(sum(span.seconds for span in made.spans if span.stage == stage))
    starts = [span.start for span in made.spans]
    assert starts == sorted(starts)
    assert all(span.seconds >= 0 for span in made.spans)


def test_previews_and_steps(session: Session, pipeline: Pipeline) -> None:
    ours, cpu = list[Step](), list[Step]()
    options: dict[str, Any] = {"num_images": 5, "previews": 4, "seed": 11, "nfe": 3}
    for _ in range(3):
        ours.clear()
        cpu.clear()
        made = session.pipeline.generate(PROMPT, on_step=ours.append, **options)
        expected = pipeline.generate(PROMPT, on_step=cpu.append, **options)
        _near(made, expected)
        for one, two in zip(made.previews, expected.previews, strict=True):
            assert [frame.sigma for frame in one] == [frame.sigma for frame in two]
            for a, b in zip(one, two, strict=True):
                assert np.abs(a.image.astype(int) - b.image.astype(int)).max() <= 1
        for a, b in zip(ours, cpu, strict=True):
            assert (a.index, a.total, a.first_image, a.sigma_from, a.sigma_to) == (
                b.index, b.total, b.first_image, b.sigma_from, b.sigma_to,
            )  # fmt: skip
            assert a.latents is not None and b.latents is not None
            np.testing.assert_allclose(a.latents, b.latents, atol=1e-5)


def test_what_a_callback_raises_ends_it_and_harms_nothing(session: Session, pipeline: Pipeline) -> None:
    def stop(step: Step) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        session.pipeline.generate(PROMPT, nfe=4, on_step=stop)
    _near(session.pipeline.generate(PROMPT, seed=1), pipeline.generate(PROMPT, seed=1))


def test_with_little_memory_networks_take_turns(bundle: Bundle, pipeline: Pipeline) -> None:
    session = Session(bundle, low_vram=True)
    assert session.loads == [], "nothing before it is needed"
    prompts = ["a woman astronaut", "a frog", "a red apple", "a cat", "photo of a rose", "a woman astronaut"]
    _near(session.pipeline.generate(prompts), pipeline.generate(prompts))
    turns = ["clip", "t5", "conditioner", "backbone", "vae_decoder"]
    assert session.loads == turns, "each once, however many batches"
    assert not session.engines["t5"].open and not session.engines["conditioner"].open
    session.pipeline.generate(prompts[0])
    assert len(session.loads) == 5, "a known prompt needs neither encoder nor conditioner"
    _near(session.pipeline.generate("a new key"), pipeline.generate("a new key"))
    assert session.loads[5:] == turns
    for prompt in ("a new key", "a new key", "a newer key", "a new key"):  # Recordings of what was unloaded are gone.
        _near(session.pipeline.generate(prompt), pipeline.generate(prompt))
    memory = session.pipeline.memory()
    all_at_once = Session(bundle).pipeline.memory()
    assert memory["peak"] < all_at_once["peak"]
    assert (memory["weights"], memory["embeddings"]) == (2000, 0)


def test_the_arena_is_the_peak_of_what_is_needed_at_once(session: Session) -> None:
    memory = session.pipeline.memory()
    assert memory["weights"] == 5000
    assert 0 < memory["buffers"] < memory["apart"]
    assert memory["buffers"] + memory["embeddings"] == session.device.memory_used()
    assert session.device.peak == session.device.memory_used(), "no request allocates"
    assert memory["peak"] == memory["weights"] + session.device.memory_used()


@pytest.mark.parametrize("low_vram", [False, True])
def test_it_takes_what_is_told_before(bundle: Bundle, low_vram: bool) -> None:
    session = Session(bundle, low_vram=low_vram)
    session.pipeline.generate(PROMPT)
    plans = {name: PlanMemory(weights=1000, activations=SCRATCH) for name in bundle.manifest.networks}
    expected = card_memory(bundle.manifest, plans)
    memory = session.pipeline.memory()
    assert memory["peak"] == (expected.low_vram if low_vram else expected.resident) - ALLOWANCE
    if not low_vram:
        assert (memory["buffers"], memory["embeddings"]) == (expected.working, expected.cached)


def test_memory_that_is_not_there(bundle: Bundle) -> None:
    device = StandInDevice(100_000)
    with pytest.raises(
        DeviceMemoryError, match=r"for the buffers of clip, t5, conditioner, backbone, vae_decoder cannot be had"
    ):
        Session(bundle, device)
    with pytest.raises(BackendError, match="closed"):
        device.mark()


def test_values_that_are_not_finite_are_refused(bundle: Bundle, pipeline: Pipeline) -> None:
    session = Session(bundle)
    run = session.engines["backbone"].run
    session.engines["backbone"].run = lambda *a: (run(*a), _spoil(session, a[1]))  # type: ignore[assignment,func-returns-value,method-assign]
    with pytest.raises(BackendError, match="not finite"):
        session.pipeline.generate(PROMPT)
    session.engines["backbone"].run = run  # type: ignore[method-assign]
    _near(session.pipeline.generate(PROMPT), pipeline.generate(PROMPT))


def _spoil(session: Session, outputs: Any) -> None:
    means = outputs["means"]
    session.device.view(means.address, means.shape, np.float32)[..., 0] = np.nan


def test_an_encoder_that_fails_leaves_nothing_behind(bundle: Bundle, pipeline: Pipeline) -> None:
    session = Session(bundle)
    bind = session.engines["t5"].bind

    def fail(*arguments: Any) -> Any:
        raise BackendError("the t5 network failed")

    session.engines["t5"].bind = fail  # type: ignore[method-assign]
    with pytest.raises(BackendError, match="t5 network failed"):
        session.pipeline.generate(PROMPT)
    session.engines["t5"].bind = bind  # type: ignore[method-assign]
    _near(session.pipeline.generate(PROMPT), pipeline.generate(PROMPT))


@pytest.mark.parametrize("changes", [{"nfe": 0}, {"width": 33}, {"seed": -1}, {"num_images": 0}, {"previews": 65}])
def test_a_bad_request_puts_nothing_on_the_stream(session: Session, changes: dict[str, int]) -> None:
    session.device.synchronize()
    before = len(session.device.log)
    with pytest.raises(RequestError):
        session.pipeline.generate(PROMPT, **changes)
    session.device.synchronize()
    assert len(session.device.log) == before


def test_threads_take_turns(session: Session, pipeline: Pipeline) -> None:
    made: dict[int, Generation] = {}
    threads = [
        threading.Thread(
            target=lambda seed=seed: made.update({seed: session.pipeline.generate(f"a rose {seed}", seed=seed)})
        )
        for seed in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(4):
        _near(made[seed], pipeline.generate(f"a rose {seed}", seed=seed))


def test_closing_gives_everything_back(bundle: Bundle) -> None:
    closed: list[str] = []
    session = Session(bundle, closing=lambda: closed.append("cache"))
    session.pipeline.generate(PROMPT)
    session.pipeline.close()
    session.pipeline.close()
    assert session.device.memory_used() == 0
    assert closed == ["cache"]
    assert not any(engine.open for engine in session.engines.values())
    with pytest.raises(BackendError, match="the pipeline is closed"):
        session.pipeline.generate(PROMPT)


def test_a_pipeline_that_is_dropped_gives_everything_back(bundle: Bundle) -> None:
    session = Session(bundle)
    session.pipeline.generate(PROMPT)
    del session.pipeline
    gc.collect()
    assert session.device.memory_used() == 0
    assert not any(engine.open for engine in session.engines.values())


def test_what_was_made_is_saved_after_each_request(bundle: Bundle) -> None:
    saved: list[int] = []
    session = Session(bundle, after=lambda: saved.append(1))
    session.pipeline.generate(PROMPT)
    session.pipeline.generate(PROMPT)
    assert saved == [1, 1]
