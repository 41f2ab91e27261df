"""Qwen-Image, from prompts to images, against diffusers' own pipeline around the same student in torch."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from engines.bundle import Bundle
from engines.errors import BundleError
from engines.schema import SEQUENCE, Manifest, Range
from foundation import noise
from runtime import solver
from runtime.architectures import layout
from runtime.architectures.base import Conditions
from runtime.hosts.onnx_network import LoadedNetwork
from runtime.hosts.python import Networks, PythonHost
from runtime.pipeline import Pipeline
from runtime.text import PromptTokenizer, TokenIds
from tests.export.pipelines import Sources
from tests.export.qwen_export import Exported
from tests.runtime import qwen_bundle
from tests.runtime.cuda.onnx_engine import Session
from tests.runtime.small_bundle import flip

PROMPTS = ["a dark bag on the table", "red", "一只黑色的包 and a sign that says hello 你好, one light boot"]
SEED = 3


@dataclass(frozen=True)
class Made:
    """The sources, their bundle, and the bundle loaded. Not to be changed."""

    sources: Sources
    bundle: Bundle
    pipeline: Pipeline


@pytest.fixture(scope="module")
def made(exported_qwen: Exported, tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("qwen")
    bundle = qwen_bundle.build(root / "small-qwen-fp32-cpu", exported_qwen, tmp_path_factory.mktemp("work"))
    return Made(exported_qwen.sources, bundle, Pipeline.open(bundle.root, threads=1))


@pytest.fixture(scope="module")
def session(made: Made) -> Session:
    """The bundle on a device of main memory, with networks in ONNX Runtime: the order of work on a GPU."""
    return Session(made.bundle)


@pytest.fixture(scope="module")
def diffusers_pipeline(made: Made) -> Any:
    """QwenImagePipeline as it is, with the student in its transformer's place and an Euler step over the segment.

    An Euler step with the mean velocity of the closed form is the closed form's own step.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, QwenImagePipeline

    from arcflow.adapter import merge_into, read_adapter
    from arcflow.architectures import qwen
    from arcflow.students import build_student

    pipeline = QwenImagePipeline.from_pretrained(made.sources.base, local_files_only=True)
    adapter = read_adapter(made.sources.adapter)
    config = dict(pipeline.transformer.config)
    student = build_student(config, adapter.config.modes, qwen.NAME)
    student = merge_into(student, pipeline.transformer.state_dict(), adapter).eval()
    pipeline.transformer = _MeanVelocity(student, pipeline.transformer.config)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class _MeanVelocity(torch.nn.Module):
    """The student as QwenImagePipeline calls a transformer. levels: the noise levels of the evaluations, and 0."""

    def __init__(self, student: torch.nn.Module, config: Any) -> None:
        super().__init__()
        self.student = student
        self.config = config
        self.levels: tuple[float, ...] = ()
        self.device, self.dtype = torch.device("cpu"), torch.float32

    @contextmanager
    def cache_context(self, name: str) -> Iterator[None]:
        yield

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor, **options: Any) -> tuple[torch.Tensor]:
        from arcflow.architectures.qwen import as_trained
        from arcflow.field import displacement

        place = min(range(len(self.levels) - 1), key=lambda i: abs(self.levels[i] - float(timestep[0])))
        start, end = (torch.tensor(self.levels[i], dtype=torch.float64) for i in (place, place + 1))
        (field,) = self.student(hidden_states=hidden_states, timestep=as_trained(timestep, "bfloat16"), **options)
        return (displacement(field, start, start, end) / (end - start).float(),)


@pytest.mark.parametrize(
    ("nfe", "width", "height"), [(2, 48, 80), (1, 32, 32), (3, 80, 16)], ids=["odd grid", "one evaluation", "one row"]
)
def test_latents_and_images_are_those_of_diffusers(
    made: Made, diffusers_pipeline: Any, nfe: int, width: int, height: int
) -> None:
    """Three prompts of three lengths: one batch in diffusers, two of different text lengths in the runtime."""
    ours = made.pipeline.generate(PROMPTS, seed=SEED, nfe=nfe, width=width, height=height)
    levels = solver.sigmas(nfe, 3.2)
    diffusers_pipeline.transformer.levels = levels
    tokens = (width // 16) * (height // 16)
    start = np.stack([noise.normal(SEED + j, tokens, 64) for j in range(len(PROMPTS))])
    options = {"sigmas": list(levels[:-1]), "num_inference_steps": nfe, "true_cfg_scale": 1.0}
    packed = diffusers_pipeline(
        PROMPTS, height=height, width=width, latents=torch.from_numpy(start), output_type="latent", **options
    ).images
    latents = diffusers_pipeline._unpack_latents(packed, height, width, 8)[:, :, 0].numpy()
    error = np.linalg.norm(ours.latents - latents) / np.linalg.norm(latents)
    assert error < 1e-5
    images = diffusers_pipeline(
        PROMPTS, height=height, width=width, latents=torch.from_numpy(start), output_type="pil", **options
    ).images
    difference = np.stack(ours.images).astype(int) - np.stack([np.asarray(p) for p in images]).astype(int)
    assert abs(difference).max() <= 1
    assert not ours.warnings


def test_the_prompt_and_the_grid_matter(made: Made) -> None:
    """What the comparison above would not see if the small student ignored it."""
    first = made.pipeline.generate(PROMPTS[0], seed=SEED).latents
    other = made.pipeline.generate(PROMPTS[2], seed=SEED).latents
    assert np.linalg.norm(first - other) / np.linalg.norm(first) > 1e-3


def test_an_image_does_not_depend_on_its_company(made: Made) -> None:
    """Padding and batches leave no trace beyond the last digits."""
    together = made.pipeline.generate(PROMPTS, seed=SEED, num_images=2, width=32, height=48)
    alone = made.pipeline.generate(PROMPTS[1], seed=SEED + 2, num_images=2, width=32, height=48)
    np.testing.assert_allclose(together.latents[2:4], alone.latents, rtol=1e-4, atol=1e-5)


def _networks(made: Made) -> Mapping[str, LoadedNetwork]:
    host = made.pipeline.host
    assert isinstance(host, PythonHost) and host.networks is not None
    return host.networks._networks


def _encode(manifest: Manifest, networks: Mapping[str, LoadedNetwork], tokens: TokenIds) -> Conditions:
    opened = Networks(manifest, networks)
    return opened.architecture.encode(opened.run, {"text": tokens})


def _mask(conditions: Conditions) -> Any:
    return np.arange(conditions.values[SEQUENCE].shape[1]) < conditions.tokens[:, None]


def test_conditions_are_those_of_encode_prompt(made: Made, diffusers_pipeline: Any) -> None:
    conditions = _encode(made.bundle.manifest, _networks(made), made.pipeline.host.tokenizers["text"](PROMPTS))
    with torch.no_grad():
        sequence, mask = diffusers_pipeline.encode_prompt(PROMPTS)
    np.testing.assert_allclose(conditions.values[SEQUENCE], sequence.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(_mask(conditions), mask.numpy())
    short = conditions.rows([1])
    assert short.values[SEQUENCE].shape[1] == max(int(mask[1].sum()), qwen_bundle.LIMITS.text_tokens.min)


def test_the_text_network_is_told_what_is_padding(made: Made) -> None:
    """Its answer would not show it: its tokens see only those before them, and padding comes after."""
    fed: list[Any] = []

    class Listening:
        def run(self, inputs: Any) -> Any:
            fed.append(inputs)
            return _networks(made)["text"].run(inputs)

    networks = {**_networks(made), "text": Listening()}
    tokens = made.pipeline.host.tokenizers["text"](PROMPTS)
    _encode(made.bundle.manifest, networks, tokens)
    assert [len(inputs["input_ids"]) for inputs in fed] == [2, 1]
    for name, values in (("input_ids", tokens.ids), ("attention_mask", tokens.mask)):
        np.testing.assert_array_equal(np.concatenate([inputs[name] for inputs in fed]), values)


def test_text_is_never_shorter_than_the_bundle_takes(made: Made) -> None:
    limits = msgspec.structs.replace(made.bundle.manifest.limits, text_tokens=Range(40, 40, 48))
    manifest = msgspec.structs.replace(made.bundle.manifest, limits=limits)
    wide = Pipeline(PythonHost(manifest, _networks(made), made.pipeline.host.tokenizers))
    conditions = _encode(manifest, _networks(made), made.pipeline.host.tokenizers["text"](PROMPTS[:2])).rows([1])
    assert conditions.values[SEQUENCE].shape[1] == 40
    assert not conditions.values[SEQUENCE][_mask(conditions) == 0].any()
    ours, plain = (p.generate(PROMPTS[1], width=32, height=32).latents for p in (wide, made.pipeline))
    np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (5, 3), (1, 6), (7, 7), (1, 1)])
def test_positions_rotate_as_diffusers_does(rows: int, columns: int) -> None:
    from diffusers.models.transformers.transformer_qwenimage import QwenEmbedRope

    axes, text = (16, 56, 56), 9
    rope = QwenEmbedRope(10000, list(axes), scale_rope=True)
    image_turns, text_turns = rope([[(1, rows, columns)]], torch.device("cpu"), text)
    positions = layout.text_positions(rows, columns, text)
    for ids, turns in (
        (layout.centred_image_ids(rows, columns), image_turns),
        (np.repeat(positions[:, None], 3, axis=1), text_turns),
    ):
        angles = [np.outer(ids[:, axis], 10000.0 ** (-np.arange(0, size, 2) / size)) for axis, size in enumerate(axes)]
        np.testing.assert_allclose(np.exp(1j * np.concatenate(angles, axis=1)), turns.numpy(), atol=1e-5)


def _reference(made: Made) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(made.sources.base / "tokenizer")


def _ids(made: Made, prompts: list[str]) -> Any:
    return made.pipeline.host.tokenizers["text"](prompts)


@pytest.mark.parametrize(
    "prompt",
    [
        "a woman astronaut",
        " leading and trailing ",
        "\nnew lines\n\n",
        "!?",
        "cafe\u0301 e\u0301t\u00e9 99%",
        "一只黑色的包",
        "\U0001f436 dog {} {0} {prompt}",
        "it's the user's, we'll see",
        "x" * 60,
        "tab\tand\r\nreturn",
    ],
)
def test_ids_are_those_of_transformers(made: Made, prompt: str) -> None:
    spec = made.bundle.manifest.tokenizers["text"]
    expected = _reference(made)([spec.template.replace("{}", prompt)], max_length=spec.max_tokens, truncation=True)
    ids = _ids(made, [prompt])
    assert ids.ids.tolist() == expected.input_ids
    assert ids.mask.tolist() == expected.attention_mask


def test_padding_is_to_the_longest(made: Made) -> None:
    spec = made.bundle.manifest.tokenizers["text"]
    texts = [spec.template.replace("{}", prompt) for prompt in PROMPTS]
    expected = _reference(made)(texts, padding=True, padding_side="right")
    ids = _ids(made, PROMPTS)
    assert ids.ids.tolist() == expected.input_ids
    assert ids.mask.tolist() == expected.attention_mask


@pytest.mark.parametrize("text", ["<|im_end|>", "a <|im_start|>system\ndog<|im_end|>", "<|endoftext|>"])
def test_special_tokens_cannot_be_typed(made: Made, text: str) -> None:
    tokenizer = _reference(made)
    special = set(tokenizer.all_special_ids)
    template = [i for i in _ids(made, ["x"]).ids[0].tolist() if i in special]
    ids = _ids(made, [text]).ids[0].tolist()
    assert [i for i in ids if i in special] == template
    start = made.bundle.manifest.tokenizers["text"].template.index("{}")
    assert tokenizer.decode(ids)[start:].startswith(text)


def test_a_prompt_too_long_is_cut_with_a_warning_that_says_where(made: Made) -> None:
    words = [f"word{i}" for i in range(200)]
    result = made.pipeline.generate(" ".join(words), width=16, height=16)
    (warning,) = result.warnings
    assert f"the text encoder takes {34 + 48} tokens" in warning
    assert warning.endswith("word199'")
    spec = made.bundle.manifest.tokenizers["text"]
    (row,) = _reference(made)([spec.template.replace("{}", " ".join(words))], max_length=82, truncation=True).input_ids
    ids = _ids(made, [" ".join(words)])
    assert ids.ids.tolist() == [row]
    kept = " ".join(words)[: -len(ids.truncations[0].dropped)]
    assert PromptTokenizer("text", made.bundle.read(spec.file), spec)([kept.strip()]).truncations == ()


def test_a_cut_of_the_template_alone_is_no_cut_of_the_prompt(made: Made) -> None:
    spec = msgspec.structs.replace(made.bundle.manifest.tokenizers["text"], max_tokens=36)
    ids = PromptTokenizer("text", made.bundle.read(spec.file), spec)(["red"])
    assert ids.ids.shape == (1, 36)
    assert not ids.truncations


def test_weights_beside_the_model_are_checked_too(made: Made, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made.bundle.root, tmp_path / made.bundle.root.name))
    data = (folder / "text.weights").read_bytes()
    (folder / "text.weights").write_bytes(flip(data, len(data) // 2))
    with pytest.raises(BundleError, match=r"'text\.weights' was altered"):
        Pipeline.open(folder, threads=1)


@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS[1:2], PROMPTS, [PROMPTS[2], PROMPTS[1], PROMPTS[1]]])
def test_on_a_gpu_it_gives_the_same(made: Made, session: Session, prompts: list[str]) -> None:
    for _ in range(3):  # Done, recorded, replayed.
        ours = session.pipeline.generate(prompts, seed=SEED, width=32)
        cpu = made.pipeline.generate(prompts, seed=SEED, width=32)
        np.testing.assert_allclose(ours.latents, cpu.latents, atol=2e-5)
        for one, two in zip(ours.images, cpu.images, strict=True):
            assert np.abs(one.astype(int) - two.astype(int)).max() <= 1


def test_on_a_gpu_texts_of_like_length_share_contexts(session: Session) -> None:
    session.pipeline.generate("a dog", seed=1)
    before = session.engines["backbone"].bound
    for number in range(4):
        session.pipeline.generate("a dog" + " red" * number, seed=1)
    assert session.engines["backbone"].bound == before


def test_on_a_gpu_a_long_prompt_is_cut_with_the_same_warning(made: Made, session: Session) -> None:
    ours, cpu = (pipeline.generate("a woman astronaut " * 40) for pipeline in (session.pipeline, made.pipeline))
    assert ours.warnings == cpu.warnings != ()
    np.testing.assert_allclose(ours.latents, cpu.latents, atol=2e-5)


def test_on_a_gpu_with_little_memory(made: Made) -> None:
    session = Session(made.bundle, low_vram=True)
    for _ in range(2):
        ours = session.pipeline.generate(PROMPTS, seed=9)
        np.testing.assert_allclose(ours.latents, made.pipeline.generate(PROMPTS, seed=9).latents, atol=2e-5)
    assert session.loads == ["text", "backbone", "vae_decoder"]
