"""The conditioner on a GPU: when it runs, what is cached of it, and that each evaluation gets its own row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from engines.bundle import Bundle, open_bundle
from engines.errors import ManifestError
from engines.memory.extents import extents_of
from engines.memory.parts import parts_of
from engines.schema import LEVELS_A_RUN
from runtime.pipeline import Pipeline
from runtime.result import Generation, Step
from tests.runtime import small_bundle
from tests.runtime.cuda.onnx_engine import Session

PROMPT, OTHER = "a smiling face with sunglasses", "a red apple"


@pytest.fixture(scope="module")
def bundle(small: Path) -> Bundle:
    return open_bundle(small)


def _runs(session: Session) -> list[int]:
    """The noise levels of each run of the conditioner so far."""
    return session.engines["conditioner"].batches


def _equal(ours: Generation, cpu: Generation) -> None:
    np.testing.assert_allclose(ours.latents, cpu.latents, rtol=0, atol=1e-5)


def test_it_runs_once_for_all_evaluations(bundle: Bundle) -> None:
    session = Session(bundle)
    session.pipeline.generate(PROMPT, num_images=4)
    assert (_runs(session), session.engines["backbone"].batches) == ([2], [4, 4]), "images of one prompt share its rows"
    session.pipeline.generate([PROMPT, OTHER], nfe=5)
    assert _runs(session) == [2, 5, 5]
    assert session.engines["t5"].batches == [1, 1], "other noise levels need no text encoder"


def test_what_is_cached_is_not_made_again(bundle: Bundle) -> None:
    session = Session(bundle)
    first = [session.pipeline.generate([PROMPT, OTHER], width=width, seed=3) for width in (16, 32)]
    assert _runs(session) == [2, 2, 2], "another size takes one run, for its angles"
    for network in ("clip", "t5", "conditioner"):
        session.engines[network].batches.clear()
    again = [session.pipeline.generate([PROMPT, OTHER], width=width, seed=3) for width in (16, 32)]
    session.pipeline.generate(OTHER, num_images=3, seed=9)
    assert [session.engines[network].batches for network in ("clip", "t5", "conditioner")] == [[], [], []]
    assert [made.latents.tobytes() for made in first] == [made.latents.tobytes() for made in again]


@pytest.mark.parametrize("nfe", [1, 2, 7, 8, 9, 17])
def test_each_evaluation_gets_its_own_row(bundle: Bundle, pipeline: Pipeline, nfe: int) -> None:
    rows: list[Any] = []
    session = Session(bundle, embeddings=32)
    run = session.engines["backbone"].run

    def listen(inputs: Any, *arguments: Any) -> None:
        bound = inputs["modulation"]
        rows.append(session.device.view(bound.address, bound.shape, np.float32).copy())
        run(inputs, *arguments)

    session.engines["backbone"].run = listen  # type: ignore[method-assign]
    for turn in range(3):  # Done, recorded, replayed.
        rows.clear()
        made = session.pipeline.generate([PROMPT, OTHER, PROMPT], nfe=nfe, seed=turn)
        _equal(made, pipeline.generate([PROMPT, OTHER, PROMPT], nfe=nfe, seed=turn))
        assert len(rows) == nfe
        for row, expected in zip(rows, _modulation(pipeline, [PROMPT, OTHER, PROMPT], made), strict=True):
            np.testing.assert_allclose(row, expected, rtol=0, atol=1e-5)
    full, rest = divmod(nfe, LEVELS_A_RUN)
    turns = [LEVELS_A_RUN] * full + [rest] * (rest > 0)
    assert sorted(_runs(session)) == sorted(turns * 2), "of each prompt once, whatever came before"


def _modulation(pipeline: Pipeline, prompts: Sequence[str], made: Generation) -> Any:
    """What the host in numpy feeds: [nfe, images, M]."""
    host: Any = pipeline.host
    networks, settings = host.networks, made.settings
    architecture = networks.architecture
    conditions = architecture.encode(networks.run, {name: one(prompts) for name, one in host.tokenizers.items()})
    grid, width = architecture.grid(settings.width, settings.height), small_bundle.T5_TOKENS
    fed = {**conditions.values, **architecture.constants([width] * len(prompts), width, grid)}
    levels = architecture.levels(settings.sigmas[:-1], settings.guidance, len(prompts))
    return networks.condition(levels, fed, len(prompts))[1]


def test_it_runs_between_evaluations_and_harms_nothing(bundle: Bundle, pipeline: Pipeline) -> None:
    session = Session(bundle, embeddings=1)  # Rows of one run of a batch: those of the first are gone with the second.
    prompts = [f"a rose {number}" for number in range(4)]
    for options in ({}, {"previews": 5}, {"on_step": lambda step: None}):
        for _ in range(3):
            made = session.pipeline.generate(prompts, nfe=19, seed=4, **options)  # type: ignore[arg-type]
            expected = pipeline.generate(prompts, nfe=19, seed=4, **options)  # type: ignore[arg-type]
            _equal(made, expected)
            for one, two in zip(made.previews, expected.previews, strict=True):
                for a, b in zip(one, two, strict=True):
                    assert np.abs(a.image.astype(int) - b.image.astype(int)).max() <= 1
    assert session.engines["t5"].batches == [1] * 4
    # With other prompts beside them, some of whose rows are cached.
    for mixed in (prompts[:1], [prompts[0], "a cat", "a dog", "a banana"], [*prompts[2:], "a cat", "a key"]):
        _equal(session.pipeline.generate(mixed, nfe=16), pipeline.generate(mixed, nfe=16))
    assert session.device.peak == session.device.memory_used(), "no request allocates"


def test_what_a_later_run_needs_is_there_from_the_beginning(bundle: Bundle, pipeline: Pipeline) -> None:
    session = Session(bundle, embeddings=1)

    def stop(step: Step) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        session.pipeline.generate(PROMPT, nfe=16, on_step=stop)
    assert _runs(session) == [8]
    session.pipeline.generate([f"a rose {number}" for number in range(4)])  # Its encodings go, its rows stay.
    _equal(session.pipeline.generate(PROMPT, nfe=16), pipeline.generate(PROMPT, nfe=16))
    assert _runs(session)[-2:] == [8, 8]


@pytest.mark.parametrize("nfe", [2, 9])
def test_with_little_memory_it_is_never_beside_the_backbone(bundle: Bundle, pipeline: Pipeline, nfe: int) -> None:
    session = Session(bundle, low_vram=True, embeddings=1)
    together: list[set[str]] = []
    enqueue = session.device.enqueue

    def listen(name: str, action: Any) -> None:
        together.append({engine.name for engine in session.engines.values() if engine.open})
        enqueue(name, action)

    session.device.enqueue = listen  # type: ignore[method-assign]
    prompts = [f"a rose {number}" for number in range(6)]
    for _ in range(2):
        _equal(session.pipeline.generate(prompts, nfe=nfe), pipeline.generate(prompts, nfe=nfe))
    assert session.loads == ["clip", "t5", "conditioner", "backbone", "vae_decoder"], "each once, however many batches"
    for there in together:
        assert there in ({"clip"}, {"t5"}, {"conditioner"}, {"backbone", "vae_decoder"}, set())
    _equal(session.pipeline.generate(prompts, nfe=3), pipeline.generate(prompts, nfe=3))
    assert session.loads[5:] == ["conditioner", "backbone", "vae_decoder"], "other noise levels need no text encoder"
    assert session.pipeline.memory()["embeddings"] == 0


@pytest.mark.parametrize(
    ("network", "kind", "port", "changes", "message"),
    [
        ("conditioner", "outputs", "context", {"name": "text"}, "there is no port 'context' among"),
        ("conditioner", "outputs", "modulation", {"shape": ["levels", 64]}, r"the conditioner network's .*cannot be"),
        ("conditioner", "inputs", "pooled_projections", {"dtype": "float16"}, r"the conditioner takes 'pooled_proj"),
        ("backbone", "inputs", "image_rotary", {"shape": ["tokens", 32]}, r"the backbone takes 'image_rotary' as"),
    ],
)
def test_ports_that_do_not_fit_each_other(
    network: str, kind: str, port: str, changes: dict[str, Any], message: str
) -> None:
    manifest = small_bundle.manifest()
    spec = manifest.networks[network]
    ports = [msgspec.structs.replace(one, **changes) if one.name == port else one for one in getattr(spec, kind)]
    networks = {**manifest.networks, network: msgspec.structs.replace(spec, **{kind: ports})}
    damaged = msgspec.structs.replace(manifest, networks=networks)
    with pytest.raises(ManifestError, match=message):
        parts_of(damaged, extents_of(damaged), 1)
