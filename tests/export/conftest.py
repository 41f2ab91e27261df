"""A FluxPipeline folder and an adapter, as small as the architecture allows, and the bundle built from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

WIDTH = 64
MODES = 3


@dataclass(frozen=True)
class Sources:
    """Folders of the base pipeline and of the adapter. Not to be changed."""

    base: Path
    adapter: Path


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Digests of what tests make are not remembered among those of builds."""
    from export.folders import digests

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digests, "CACHE", tmp_path_factory.mktemp("digests") / "digests.json")
        yield


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    from arcflow.adapter import Policy, save_adapter
    from arcflow.recipe import StudentRecipe
    from arcflow.students import Student

    torch.manual_seed(0)
    pipeline = _pipeline()
    root = tmp_path_factory.mktemp("sources")
    pipeline.save_pretrained(root / "base")
    student = Student(pipeline.transformer, StudentRecipe(rank=2, modes=MODES))
    for parameter in student.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.05)
    policy = Policy(shift=1.7, guidance=2.5, nfe=2, conditioning_dtype="float32")
    save_adapter(student, pipeline.transformer.config, policy, root / "adapter")
    return Sources(root / "base", root / "adapter")


def _pipeline():  # type: ignore[no-untyped-def]
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    from arcflow.recipe import TransformerSize
    from arcflow.tiny.stages import assemble_pipeline
    from arcflow.tiny.teacher import TeacherNetworks, build_transformer
    from arcflow.tiny.text import CLIP_TOKENS, TextEncoders, build_clip_tokenizer, build_t5_tokenizer

    captions = ["a woman astronaut", "one red heart"]
    clip_tokenizer, t5_tokenizer = build_clip_tokenizer(captions), build_t5_tokenizer(captions)
    size = TransformerSize(heads=2, head_dim=16, double_blocks=1, single_blocks=1, rope=(4, 6, 6))
    transformer = build_transformer(size, 16)
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(clip_tokenizer),
            hidden_size=WIDTH,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=CLIP_TOKENS,
            bos_token_id=clip_tokenizer.bos_token_id,
            eos_token_id=clip_tokenizer.eos_token_id,
            pad_token_id=clip_tokenizer.pad_token_id,
        )
    )
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=len(t5_tokenizer),
            d_model=WIDTH,
            d_kv=16,
            num_heads=2,
            d_ff=32,
            num_layers=1,
            feed_forward_proj="gated-gelu",
            is_encoder_decoder=False,
        )
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.2,
        shift_factor=0.1,
    )
    networks = TeacherNetworks(transformer, TextEncoders(clip, t5))
    return assemble_pipeline(networks, (clip_tokenizer, t5_tokenizer), vae, 1.7)


@dataclass(frozen=True)
class Built:
    """A finished build: the bundle, the work folder, and the sources. Not to be changed."""

    bundle: Path
    workdir: Path
    sources: Sources


@pytest.fixture(scope="session")
def built(sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The bundle that the command makes from the small sources."""
    from export.build import main

    root = tmp_path_factory.mktemp("built")
    bundle, workdir = root / "tiny-fp32-cpu", root / "work"
    assert main(arguments(sources, bundle, workdir)) == 0
    return Built(bundle, workdir, sources)


def arguments(sources: Sources, out: Path, workdir: Path) -> list[str]:
    """The command line of a build from these sources, in fp32."""
    folders = {"--base": sources.base, "--adapter": sources.adapter, "--out": out, "--workdir": workdir}
    return ["--precision", "fp32", *(part for option, folder in folders.items() for part in (option, str(folder)))]
