"""A bundle of the embedded default's name and architecture, of smaller images and a few thousand random weights.

Its ONNX graphs have exactly the inputs and outputs of a FLUX bundle and depend on every one of them, so the whole
path can be tested in milliseconds, with no training and no torch.
"""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from engines.bundle import Bundle
from engines.schema import (
    Latent,
    Limits,
    Manifest,
    Momentum,
    Network,
    ParityResult,
    Port,
    Range,
    Schedule,
    TokenizerSpec,
)
from engines.writer import write_bundle

MODES = 4
CLIP_TOKENS, T5_TOKENS, WIDTH, HIDDEN, MODULATION = 32, 12, 64, 32, 128
WORDS = ("a", "smiling", "face", "with", "sunglasses", "red", "apple", "of", "pizza", "woman", "astronaut", "rose")
_START, _END = "<|startoftext|>", "<|endoftext|>"
_DTYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}


def build(folder: Path, others: dict[str, bytes] | None = None, **changes: Any) -> Bundle:
    """Write the small bundle at ``folder``; ``changes`` replace fields of its manifest, ``others`` files."""
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    graphs = {
        "clip.onnx": _clip(len(clip["model"]["vocab"])),
        "t5.onnx": _t5(len(t5["model"]["vocab"])),
        "conditioner.onnx": _conditioner(),
        "backbone.onnx": _backbone(),
        "vae_decoder.onnx": _vae_decoder(),
    }
    files: dict[str, Path | bytes] = {
        name: model.SerializeToString(deterministic=True) for name, model in graphs.items()
    }
    files["tokenizers/clip.json"] = json.dumps(clip).encode()
    files["tokenizers/t5.json"] = json.dumps(t5).encode()
    files |= others or {}
    return write_bundle(folder, manifest(pad_id=clip["model"]["vocab"][_END], **changes), files)


def manifest(pad_id: int = 0, **changes: Any) -> Manifest:
    """The small bundle's manifest, with no files yet."""
    fields: dict[str, Any] = {
        "model": "tiny",
        "architecture": "flux",
        "precision": "fp32",
        "target": "cpu",
        "networks": {name: Network(f"{name}.onnx", *ports) for name, ports in _PORTS.items()},
        "limits": Limits(Range(1, 1, 4), Range(16, 32, 64), Range(16, 32, 64), Range(12, 12, 12), 8),
        "latent": Latent(channels=4, patch=2, vae_factor=4, scaling_factor=[0.8], shift_factor=[0.1]),
        "schedule": Schedule(shift=1.7, guidance=2.0, nfe=2, final_step_ratio=1.0, conditioning_dtype="bfloat16"),
        "momentum": Momentum(modes=MODES, packed_channels=16, patch_positions=4),
        "tokenizers": {
            "clip": TokenizerSpec("tokenizers/clip.json", CLIP_TOKENS, pad_id),
            "t5": TokenizerSpec("tokenizers/t5.json", T5_TOKENS, 0),
        },
        "parents": {"base": "0" * 64, "adapter": "1" * 64},
        "tools": {"onnx": onnx.__version__},
        "parity": [ParityResult("backbone", {"batch": 1}, 1e-6, 1e-4)],
    }
    return Manifest(**{**fields, **changes})


def clip_tokenizer() -> dict[str, Any]:
    """A CLIP tokenizer.json without merges: byte-level letters, lower case, start and end tokens."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(piece + "</w>" for piece in alphabet), _START, _END]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab, [], end_of_word_suffix="</w>", unk_token=_END))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = Regex(r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.post_processor = processors.RobertaProcessing((_END, vocab[_END]), (_START, vocab[_START]), False, False)
    tokenizer.add_special_tokens([_START, _END])
    return json.loads(tokenizer.to_str())


def t5_tokenizer() -> dict[str, Any]:
    """A T5 tokenizer.json: unigram over the words and the printable ASCII characters."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    specials = ["<pad>", "</s>", "<unk>"]
    vocab = [(piece, 0.0) for piece in specials] + [("\u2581" + word, -2.0) for word in WORDS]
    taken = {piece for piece, _ in vocab}
    letters = "\u2581" + string.ascii_letters + string.digits + string.punctuation
    vocab += [(letter, -9.0) for letter in letters if letter not in taken]
    tokenizer = Tokenizer(models.Unigram(vocab, 2, False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens(specials)
    return json.loads(tokenizer.to_str())


def _port(name: str, dtype: str, *shape: int | str) -> Port:
    return Port(name, dtype, list(shape))  # type: ignore[arg-type]


_B, _L, _S, _T = "batch", "levels", "image_tokens", "text_tokens"
_PORTS: dict[str, tuple[list[Port], list[Port]]] = {
    "clip": ([_port("input_ids", "int64", _B, CLIP_TOKENS)], [_port("pooled", "float32", _B, WIDTH)]),
    "t5": ([_port("input_ids", "int64", _B, _T)], [_port("sequence", "float32", _B, _T, WIDTH)]),
    "conditioner": (
        [
            _port("timestep", "float32", _L),
            _port("guidance", "float32", _L),
            _port("pooled_projections", "float32", _L, WIDTH),
            _port("encoder_hidden_states", "float32", _B, _T, WIDTH),
            _port("img_ids", "float32", _S, 3),
            _port("txt_ids", "float32", _T, 3),
        ],
        [
            _port("modulation", "float32", _L, MODULATION),
            _port("context", "float32", _B, _T, HIDDEN),
            _port("image_rotary", "float32", _S, HIDDEN),
            _port("text_rotary", "float32", _T, HIDDEN),
        ],
    ),
    "backbone": (
        [
            _port("hidden_states", "float32", _B, _S, 16),
            _port("modulation", "float32", _B, MODULATION),
            _port("context", "float32", _B, _T, HIDDEN),
            _port("image_rotary", "float32", _S, HIDDEN),
            _port("text_rotary", "float32", _T, HIDDEN),
        ],
        [
            _port("means", "float32", _B, _S, MODES, 16),
            _port("logweights", "float32", _B, _S, MODES, 4),
            _port("loggammas", "float32", _B, _S, MODES - 1, 4),
        ],
    ),
    "vae_decoder": (
        [_port("latents", "float32", _B, 4, "rows", "columns")],
        [_port("images", "float32", _B, 3, "4*rows", "4*columns")],
    ),
}


def _weights(seed: int, **shapes: tuple[int, ...]) -> list[onnx.TensorProto]:
    rng = np.random.default_rng(seed)
    return [
        numpy_helper.from_array((rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32), name)
        for name, shape in shapes.items()
    ]


def _constant(name: str, *values: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, dtype=np.int64), name)


def _model(name: str, nodes: list[onnx.NodeProto], initializers: list[onnx.TensorProto]) -> onnx.ModelProto:
    inputs, outputs = (
        [helper.make_tensor_value_info(port.name, _DTYPES[port.dtype], list(port.shape)) for port in ports]
        for ports in _PORTS[name]
    )
    graph = helper.make_graph(nodes, name, inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def _clip(vocab: int) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["embedded"]),
        helper.make_node("ReduceMean", ["embedded", "one"], ["pooled"], keepdims=0),
    ]
    return _model("clip", nodes, [*_weights(1, table=(vocab, WIDTH)), _constant("one", 1)])


def _t5(vocab: int) -> onnx.ModelProto:
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["sequence"])]
    return _model("t5", nodes, _weights(2, table=(vocab, WIDTH)))


def _conditioner() -> onnx.ModelProto:
    node = helper.make_node
    nodes = [
        node("MatMul", ["pooled_projections", "w_pooled"], ["p"]),
        node("Unsqueeze", ["timestep", "one"], ["sigma"]),
        node("Mul", ["sigma", "w_sigma"], ["s"]),
        node("Unsqueeze", ["guidance", "one"], ["strength"]),
        node("Mul", ["strength", "w_guidance"], ["g"]),
        node("Sum", ["p", "s", "g"], ["modulation"]),
        node("MatMul", ["encoder_hidden_states", "w_text"], ["context"]),
        node("MatMul", ["img_ids", "w_image_ids"], ["image_rotary"]),
        node("MatMul", ["txt_ids", "w_text_ids"], ["text_rotary"]),
    ]
    weights = _weights(
        5,
        w_pooled=(WIDTH, MODULATION),
        w_sigma=(1, MODULATION),
        w_guidance=(1, MODULATION),
        w_text=(WIDTH, HIDDEN),
        w_image_ids=(3, HIDDEN),
        w_text_ids=(3, HIDDEN),
    )
    return _model("conditioner", nodes, [*weights, _constant("one", 1)])


def _backbone() -> onnx.ModelProto:
    node = helper.make_node
    nodes = [
        node("MatMul", ["hidden_states", "w_x"], ["x"]),
        node("MatMul", ["modulation", "w_modulation"], ["p0"]),
        node("Unsqueeze", ["p0", "one"], ["p"]),
        node("ReduceMean", ["context", "one"], ["t"], keepdims=1),
        node("ReduceMean", ["text_rotary", "zero"], ["j"], keepdims=1),
        node("Sum", ["x", "t", "p", "image_rotary", "j"], ["sum"]),
        node("Tanh", ["sum"], ["h"]),
        node("MatMul", ["h", "w_means"], ["m"]),
        node("Reshape", ["m", "means_shape"], ["means"]),
        node("MatMul", ["h", "w_weights"], ["w0"]),
        node("Reshape", ["w0", "weights_shape"], ["w"]),
        node("LogSoftmax", ["w"], ["logweights"], axis=2),
        node("MatMul", ["h", "w_gammas"], ["l"]),
        node("Reshape", ["l", "gammas_shape"], ["loggammas"]),
    ]
    weights = _weights(
        3,
        w_x=(16, HIDDEN),
        w_modulation=(MODULATION, HIDDEN),
        w_means=(HIDDEN, MODES * 16),
        w_weights=(HIDDEN, MODES * 4),
        w_gammas=(HIDDEN, (MODES - 1) * 4),
    )
    constants = [
        _constant("zero", 0),
        _constant("one", 1),
        _constant("means_shape", 0, 0, MODES, 16),
        _constant("weights_shape", 0, 0, MODES, 4),
        _constant("gammas_shape", 0, 0, MODES - 1, 4),
    ]
    return _model("backbone", nodes, weights + constants)


def _vae_decoder() -> onnx.ModelProto:
    nodes = [
        helper.make_node("ConvTranspose", ["latents", "kernel"], ["raw"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Tanh", ["raw"], ["images"]),
    ]
    return _model("vae_decoder", nodes, _weights(4, kernel=(4, 3, 4, 4)))


def flip(data: bytes, position: int) -> bytes:
    """``data`` with one bit of the byte at ``position`` changed."""
    changed = bytearray(data)
    changed[position] ^= 0x01
    return bytes(changed)


def random_field(seed: int, shape: tuple[int, int], modes: int = MODES) -> tuple[NDArray[np.float64], ...]:
    """(means, logweights, loggammas) float64 of ``shape`` = (batch, tokens), 16 channels, 4 positions."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((*shape, modes, 4))
    logweights = logits - np.log(np.exp(logits).sum(axis=2, keepdims=True))
    return rng.standard_normal((*shape, modes, 16)), logweights, rng.normal(0.0, 1.5, (*shape, modes - 1, 4))
