"""The embedded default's images, captions, tokenizers, latents, VAE, judge and folder."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image, ImageDraw
from safetensors.torch import save_file

from arcflow.errors import CheckpointError, DatasetError
from arcflow.recipe import load_recipe, own_teacher
from arcflow.tiny.captions import (
    HELD_OUT_SHARE,
    Subject,
    captions_of,
    describe,
    evaluation_prompts,
    spoken,
    subjects,
    training_captions,
)
from arcflow.tiny.classifier import Classifier
from arcflow.tiny.images import COMMON, SIZE, Emoji, concepts, load_emoji
from arcflow.tiny.judging import open_judge
from arcflow.tiny.latents import CANVASES, SHARES, EmojiLatents, encode_variants
from arcflow.tiny.stages import _open_vae
from arcflow.tiny.teacher_folder import open_teacher
from arcflow.tiny.text import (
    T5_TOKENS,
    TextEncoders,
    build_clip_encoder,
    build_clip_tokenizer,
    build_t5_encoder,
    build_t5_tokenizer,
    encode,
    tokenize,
)
from arcflow.tiny.vae import build_vae
from arcflow.training.loop import Iteration
from scripts.emoji_subjects import lines


def test_pictures_are_put_on_white_and_what_is_not_wanted_is_left_out(pictures: Path) -> None:
    emoji = load_emoji(pictures)
    assert len(emoji) == 2 + 3 * 6 and emoji.pixels.shape == (20, 3, SIZE, SIZE) and emoji.pixels.dtype == torch.uint8
    assert {subject.concept for subject in emoji.subjects} == {"red heart", "dog", "cook"}
    rgb = emoji.rgb(torch.arange(20))
    assert bool((rgb[:, :, :4] == 1.0).all()) and float(rgb.min()) >= -1.0
    heart = next(row for row, subject in enumerate(emoji.subjects) if subject.concept == "red heart")
    assert emoji.pixels[heart, :, 32, 28].tolist() == pytest.approx([200, 190, 30], abs=2)


def test_what_is_drawn_keeps_its_size_on_a_larger_canvas(pictures: Path) -> None:
    emoji, rows = load_emoji(pictures), torch.arange(4)
    wide = emoji.rgb(rows, (96, 64))
    assert wide.shape == (4, 3, 64, 96)
    assert torch.equal(wide[..., 16:80], emoji.rgb(rows)) and bool((wide[..., :16] == 1.0).all())


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (64, 96), (80, 80)])
def test_variants_are_moved_and_smaller_but_the_same_picture(pictures: Path, size: tuple[int, int]) -> None:
    emoji = load_emoji(pictures)
    rows = torch.zeros(64, dtype=torch.int64)
    varied = emoji.varied(rows, torch.Generator().manual_seed(0), size)
    ink, all_ink = (1.0 - varied).sum(dim=(1, 2, 3)), float((1.0 - emoji.rgb(rows[:1])).sum())
    assert varied.shape == (64, 3, size[1], size[0]) and float(varied.min()) >= -1.0 and float(varied.max()) <= 1.0
    assert bool((varied[:, :, 0] == 1.0).all()), "nothing is cut off at the border"
    assert 0.70 < float(ink.min()) / all_ink < float(ink.max()) / all_ink < 1.03
    again = emoji.varied(rows, torch.Generator().manual_seed(0), size)
    assert torch.equal(varied, again) and float(varied.std(dim=0).max()) > 0.1


def test_hands_that_point_are_not_mirrored() -> None:
    emoji = Emoji(
        torch.full((2, 3, SIZE, SIZE), 255, dtype=torch.uint8), (Subject("left hand", ()), Subject("dog", ()))
    )
    assert emoji.mirrors.tolist() == [False, True]


def test_a_concept_of_many_images_is_drawn_more_often_but_not_in_proportion(pictures: Path) -> None:
    emoji = load_emoji(pictures)
    drawn = emoji.labels[emoji.draw(20_000, torch.Generator().manual_seed(0))]
    cook, heart = (float((drawn == label).sum()) for label in (emoji.labels[5], emoji.labels[-1]))
    assert cook / heart == pytest.approx(18**COMMON, rel=0.1)


def test_a_missing_or_damaged_data_set_says_what_to_do(
    pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.raises(DatasetError, match="make data"):
        load_emoji(tmp_path_factory.mktemp("empty"))
    next(pictures.glob("*.webp")).write_bytes(b"RIFF")
    with pytest.raises(DatasetError, match="make data"):
        load_emoji(pictures)
    next(pictures.glob("*.webp")).unlink()
    with pytest.raises(DatasetError, match="1 images are missing"):
        load_emoji(pictures)


@pytest.mark.parametrize(
    ("label", "tone", "first", "gender"),
    [
        ("woman firefighter", 4, "a woman firefighter with dark skin", "woman"),
        ("firefighter", None, "a firefighter", "person"),
        ("man biking", 0, "a man biking with light skin", "man"),
        ("man: red hair", 2, "a man with red hair and medium skin", "man"),
        ("person in tuxedo", None, "a person in a tuxedo", "person"),
        ("woman: bald", None, "a woman with a bald head", "woman"),
        ("piñata", None, "a pinata", None),
        ("grapes", None, "grapes", None),
        ("red apple", None, "a red apple", None),
        ("octopus", None, "an octopus", None),
        ("bread", None, "bread", None),
    ],
)
def test_captions_are_what_people_type(label: str, tone: int | None, first: str, gender: str | None) -> None:
    subject = describe(spoken(label), (), tone)
    assert captions_of(subject)[0] == first and (subject.gender, subject.tone) == (gender, tone)


def test_the_table_names_everything_in_all_its_tones(pictures: Path) -> None:
    found = subjects()
    assert len(found) == 20 and found["1f415"].phrases == ("dog", "pet", "hound")
    assert found["1f469-1f3ff-200d-1f373"] == describe("woman cook", (), 4)


def test_a_line_is_made_of_the_sources_and_the_committed_table_is_whole() -> None:
    entries = [
        {"hexcode": "2764-FE0F", "label": "red heart", "subgroup": 0, "tags": ["love", "crimson"]},
        {"hexcode": "1F415", "label": "dog", "subgroup": 0, "tags": ["pet", "love"]},
        {"hexcode": "1F9D1", "label": "cook", "subgroup": 1, "tags": ["chef"], "skins": [{}]},
        {"hexcode": "1F1E6", "label": "flag: Somewhere", "subgroup": 2},
        {"hexcode": "1F595", "label": "middle finger", "subgroup": 1, "skins": [{}]},
        {"hexcode": "1F9D9", "label": "mage", "subgroup": 1},
    ]
    kinds = [{"key": key, "order": order} for order, key in enumerate(("heart", "person-role", "country-flag"))]
    made = lines(entries, {"subgroups": kinds}, {"2764", "1f415", "1f9d1", "1f9d1-1f3fb", "1f1e6", "1f595"})
    assert made == ["1f415: dog, pet\n", "1f9d1 *: cook, chef\n", "2764: red heart, crimson\n"]
    named = {subject.concept for subject in subjects().values()}
    assert len(subjects()) == 2578 and {"firefighter", "red heart", "pizza"} <= named and "middle finger" not in named


def test_some_combinations_are_held_out_and_all_their_parts_are_known() -> None:
    people = [subject for subject in subjects().values() if subject.gender is not None]
    both = [subject for subject in people if subject.gender != "person" and subject.tone is not None]
    held = [subject for subject in people if subject.held_out]
    kept = [subject for subject in people if not subject.held_out]
    assert len(held) / len(both) == pytest.approx(HELD_OUT_SHARE, abs=0.03)
    genders, tones = {(s.concept, s.gender) for s in kept}, {(s.concept, s.tone) for s in kept}
    assert all((s.concept, s.gender) in genders and (s.concept, s.tone) in tones for s in held)
    for subject in held:
        assert not replace(subject, tone=None).held_out and not replace(subject, gender="person").held_out


def test_evaluation_prompts_are_of_no_caption_and_half_of_them_of_no_image() -> None:
    prompts = evaluation_prompts(300)
    texts = [text for text, _ in prompts]
    assert not set(texts) & set(training_captions()) and texts[0].startswith("picture of ")
    assert [subject.held_out for _, subject in prompts[:4]] == [True, False, True, False]
    assert len({subject.concept for _, subject in prompts}) > 100 and len(set(texts)) > 200
    held = next(text.removeprefix("picture of ") for text, subject in prompts if subject.held_out)
    assert held not in training_captions()


def test_tokenizers_know_every_word_of_the_captions_and_any_other_text() -> None:
    captions = ["", *training_captions()]
    clip, t5 = build_clip_tokenizer(captions), build_t5_tokenizer(captions)
    table = tokenize([*captions, "picture of a red heart"], clip, t5)
    assert bool((table.t5 != t5.unk_token_id).all())
    full = (table.t5 != 0).sum(dim=1) == T5_TOKENS
    assert float(full.float().mean()) < 0.03, "few captions are that long, and fewer still are cut"
    assert table.index["a red heart"] == captions.index("a red heart")
    odd = tokenize(["Zebra \u6f22\u5b57 \U0001f642 42%"], clip, t5)
    assert odd.clip.shape == (1, 24) and odd.t5.shape == (1, T5_TOKENS)


@pytest.fixture
def latents(pictures: Path) -> EmojiLatents:
    torch.manual_seed(0)
    vae = build_vae((8, 8, 8, 8), 16, SIZE).eval()
    emoji = load_emoji(pictures)
    means, stds = encode_variants(vae, emoji)
    return EmojiLatents(tuple(means), tuple(stds), emoji, emoji.captions())


def test_every_size_and_variant_is_encoded(latents: EmojiLatents) -> None:
    for mean, std, ((width, height), variants) in zip(latents.means, latents.stds, CANVASES.items(), strict=True):
        assert mean.shape == std.shape == (variants, 20, 16, height // 8, width // 8)
        assert variants == 1 or not torch.equal(mean[0], mean[1])


def test_batches_have_captions_of_their_images_and_all_sizes(latents: EmojiLatents) -> None:
    captions = sorted({one for each in latents.captions for one in each})
    tokenizers = build_clip_tokenizer(captions), build_t5_tokenizer(captions)
    table = tokenize(["", *captions], *tokenizers)
    grids: dict[tuple[int, int], int] = {}
    dropped = 0
    for index in range(200):
        it = Iteration(index, torch.Generator().manual_seed(index), lambda _: nullcontext(), 0, range(8))
        batch = latents.sample(table, 8, it)
        grids[batch.grid] = grids.get(batch.grid, 0) + 1
        dropped += int((batch.rows == 0).sum())
        assert batch.x0.shape == (8, batch.grid[0] * batch.grid[1], 64) and bool(batch.x0.isfinite().all())
    assert set(grids) == {(4, 4), (4, 6), (6, 4), (5, 5)}
    assert grids[4, 4] / 200 == pytest.approx(SHARES[0], abs=0.1) and 0.05 < dropped / 1600 < 0.15


def test_a_long_table_is_encoded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    captions = ["", "a red heart", "a dog", "a cook"]
    clip, t5 = build_clip_tokenizer(captions), build_t5_tokenizer(captions)
    torch.manual_seed(0)
    text = TextEncoders(build_clip_encoder(clip), build_t5_encoder(t5)).eval()
    table = tokenize(captions, clip, t5)
    whole = encode(text, table)
    monkeypatch.setattr("arcflow.tiny.text.ENCODED_AT_ONCE", 3)
    for one, other in zip(whole, encode(text, table), strict=True):
        torch.testing.assert_close(one, other)


VAE = Path(__file__).parents[2] / "models" / "tiny" / "teacher" / "vae"


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (48, 80)])
def test_the_committed_vae_gives_back_what_it_encodes(size: tuple[int, int]) -> None:
    picture = Image.new("RGB", size, "white")
    ImageDraw.Draw(picture).ellipse((10, 12, 40, 44), fill=(220, 40, 60))
    images = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1.0
    vae = AutoencoderKL.from_pretrained(VAE, dtype=torch.float32)
    with torch.no_grad():
        latents = vae.encode(images).latent_dist.mean
        back = vae.decode(latents).sample
    assert latents.shape == (1, 16, size[1] // 8, size[0] // 8)
    assert float((back - images).square().mean()) < 4.0 * 10 ** (-24.0 / 10), "under 24 dB"


def test_a_vae_of_another_form_is_refused(tmp_path: Path) -> None:
    settings = own_teacher(load_recipe("tiny"))
    with pytest.raises(CheckpointError, match="no VAE in"):
        _open_vae(settings, tmp_path)
    build_vae((8, 8, 8), 4, 32).save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match="3 levels and 4 channels: the recipe wants 4 and 16"):
        _open_vae(settings, tmp_path / "other")


def test_its_judge_sees_colour_and_knows_every_concept(pictures: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file(Classifier(len(concepts())).state_dict(), tmp_path / "classifier.safetensors")
    judge = open_judge(load_recipe("tiny"), 6, tmp_path / "classifier.safetensors", pictures)
    logits, features = judge.classify(torch.zeros(2, 3, 64, 96))
    assert logits.shape == (2, 3) and features.shape == (2, 64)
    assert judge.reals.shape == (len(load_emoji(pictures).without_held_out()), 64)
    assert concepts()[int(judge.labels[0])] == "cook" and len(judge.prompts) == 6
    grey = judge.classify(torch.full((1, 3, 64, 64), -1.0).index_fill(1, torch.tensor([0]), 1.0))
    assert not torch.equal(grey[1], judge.classify(torch.full((1, 3, 64, 64), -1.0 / 3))[1])


def test_the_stock_pipeline_opens_the_folder_and_agrees_with_our_sampler(teacher_path: Path) -> None:
    from diffusers import FluxPipeline

    from arcflow.architectures import flux
    from arcflow.sampling import sample_teacher

    pipeline = FluxPipeline.from_pretrained(teacher_path, local_files_only=True, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    teacher = open_teacher(teacher_path)
    noise = torch.randn(1, 16, 64, generator=torch.Generator().manual_seed(3))
    stock = pipeline(
        "a red heart", height=64, width=64, num_inference_steps=4, guidance_scale=2.0, max_sequence_length=T5_TOKENS,
        latents=noise, output_type="latent",
    ).images  # fmt: skip
    ours, _ = sample_teacher(flux, teacher.transformer, noise, teacher.condition(["a red heart"], 2.0), 4, 1.7)
    torch.testing.assert_close(ours, stock, rtol=1e-4, atol=1e-4)
    assert teacher.decode(ours).shape == (1, 3, SIZE, SIZE)


def test_no_teacher_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"python -m arcflow\.teacher"):
        open_teacher(tmp_path)
