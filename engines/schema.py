"""What a ``manifest.json`` is made of: one frozen struct a concept. Unknown fields are rejected everywhere.

:mod:`engines.manifest` reads and writes the whole; :mod:`engines.checks` says what its parts must agree on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Final, Literal

import msgspec

SCHEMA_VERSION = 4
KIND: Final = "arcflow-bundle"
MANIFEST_NAME = "manifest.json"

Architecture = Literal["flux", "qwen"]
Flavour = Literal["tensorrt", "tensorrt-rtx"]

NETWORKS: Mapping[str, tuple[str, ...]] = {
    "flux": ("backbone", "clip", "conditioner", "t5", "vae_decoder"),
    "qwen": ("backbone", "text", "vae_decoder"),
}
"""Networks of a bundle by architecture."""

TOKENIZERS: Mapping[str, tuple[str, ...]] = {"flux": ("clip", "t5"), "qwen": ("text",)}
"""Tokenizers of a bundle by architecture; each is called as the network that takes its ids."""

SEQUENCE = "encoder_hidden_states"
"""The backbone's input that has a row a text token."""

TEXT_PORTS: Mapping[str, Mapping[str, str]] = {
    "flux": {"pooled_projections": "clip", SEQUENCE: "t5"},
    "qwen": {SEQUENCE: "text"},
}
"""Inputs that text encoders make, of the conditioner or else of the backbone, and the encoder of each."""

LEVELS_A_RUN = 8
"""Noise levels, of each image of a batch, that a conditioner takes in one run; more take several."""

SOURCE_TARGET = "onnx"
"""The target of portable bundles: nothing runs their ONNX files, plans are built from them."""

ONNX_TARGETS = ("cpu", SOURCE_TARGET)
"""Targets whose networks are ONNX files, not plans; "cpu" is what ONNX Runtime runs."""

CAPABILITIES_OF_TARGET: Mapping[str, tuple[str, ...]] = {"rtx": ("sm120", "sm89")}
"""Compute capabilities of the targets that are not one themselves (every other GPU target is: ``sm90``)."""

COUNT_MAX = (1 << 21) - 1
"""The greatest count, dimension or token id: the product of three still fits in 64 bits, in whatever language."""

# "\Z" and not "$", which would let a line's end pass after the text.
Count = Annotated[int, msgspec.Meta(ge=1, le=COUNT_MAX)]
Whole = Annotated[int, msgspec.Meta(ge=0, le=COUNT_MAX)]
Size = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9._-]*\Z")]
Word = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9_]+\Z")]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Digest = Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{64})?\Z")]
Capability = Annotated[str, msgspec.Meta(pattern=r"^sm[0-9]{2,3}\Z")]
Seal = Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{16}:[0-9a-f]{64})?\Z")]
Positive = Annotated[float, msgspec.Meta(gt=0)]


class Port(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One input or output of a network; a dimension that is a string is symbolic (free within the limits)."""

    name: str
    dtype: Literal["float32", "float16", "bfloat16", "int64", "int32"]
    shape: Sequence[Count | str]


class Network(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One network of the bundle: its file, its ports, and what kind of file it is.

    format: an ONNX model or a TensorRT plan. data: files that an ONNX model keeps its weights in; they lie in the
    model's own folder. compute: the floating type of most of its arithmetic (ports are float32 all the same).
    """

    file: str
    inputs: Sequence[Port]
    outputs: Sequence[Port]
    format: Literal["onnx", "plan"] = "onnx"
    data: Sequence[str] = ()
    compute: Literal["float32", "float16", "bfloat16"] = "float32"


class Range(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The least, usual and greatest value of a dimension."""

    min: Count
    opt: Count
    max: Count


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Shapes the networks take: images a call, pixels (multiples of ``multiple``), text tokens of the backbone."""

    batch: Range
    width: Range
    height: Range
    text_tokens: Range
    multiple: Count


class Latent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Geometry of the latent: ``vae_factor`` pixels a latent cell, ``patch`` x ``patch`` cells a token.

    The VAE decoder takes ``z / scaling_factor + shift_factor``; both are lists of one number, or of one a channel.
    """

    channels: Count
    patch: Count
    vae_factor: Count
    scaling_factor: Sequence[Positive]
    shift_factor: Sequence[float]


class Schedule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Constants of the sigma schedule, the guidance fed to the backbone, and the evaluations: usual and most.

    A backbone that takes no guidance (Qwen-Image's) was distilled from a teacher with that much of it.
    conditioning_dtype: what rounded noise level and guidance when the student was trained; the backbone is fed them
    rounded so (:mod:`runtime.architectures.conditioning`), the solver is not.
    """

    shift: Positive
    guidance: float
    nfe: Count
    final_step_ratio: Positive
    conditioning_dtype: Literal["float32", "bfloat16"]
    max_nfe: Count = 64


class Momentum(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Shape of the momentum field: K modes, packed channels of a token, patch positions that share a gate."""

    modes: Count
    packed_channels: Count
    patch_positions: Count


class TokenizerSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A ``tokenizer.json`` and how its ids are brought to length (start and end ids come from the file itself).

    max_tokens: most ids of a prompt, those of the template included. template: what the prompt is put into, "" or a
    text with one "{}"; special tokens in it are special. drop: leading tokens whose encodings the backbone does not
    get. pad: to ``max_tokens``, or to the longest prompt of a call (then with an attention mask).
    """

    file: str
    max_tokens: Count
    pad_id: Whole
    template: str = ""
    drop: Whole = 0
    pad: Literal["max", "longest"] = "max"


class ShapeRange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The least, usual and greatest shape of one input: an optimisation profile."""

    min: Sequence[Count]
    opt: Sequence[Count]
    max: Sequence[Count]


class PlanMemory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bytes that a plan takes of a GPU: its weights, and what an evaluation at its greatest shapes works in."""

    weights: Size
    activations: Size


class Engine(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What makes the plans of a bundle valid: anything that differs on a machine makes them unusable there.

    version: of TensorRT, as it names itself ("1.7.1.116"). compute_capabilities: sorted. profiles: by network and
    input. onnx: for each network the :func:`engines.manifest.source_digest` of the ONNX it was built from.
    memory: of every network, as its builder said; empty where it did not say all.
    seal: :func:`engines.trust.seal`; "" for plans that no machine vouches for.
    """

    flavour: Flavour
    version: str
    compute_capabilities: Sequence[Capability]
    opt_level: Annotated[int, msgspec.Meta(ge=0, le=5)]
    profiles: Mapping[str, Mapping[str, ShapeRange]]
    onnx: Mapping[str, Sha256]
    memory: Mapping[str, PlanMemory] = msgspec.field(default_factory=dict)
    seal: Seal = ""


class Quantisation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How an FP8 backbone was quantised.

    calibration: digest of the calibration file. method: how its amax became scales ("max", "percentile", "mse").
    synthetic: the scales are nominal, not measured: good for timing and sizes, not for images. layers: weights of the
    backbone in FP8, by state-dict name; stored: by network, weights that are FP8 in the file and multiplied in the
    network's own type; kept_high: layers or patterns that were left out, on request or to hold the gate; options: what
    else was chosen.
    """

    calibration: Sha256
    method: str
    synthetic: bool
    layers: Sequence[str]
    stored: Mapping[str, Sequence[str]] = msgspec.field(default_factory=dict)
    kept_high: Sequence[str] = ()
    options: Mapping[str, str] = msgspec.field(default_factory=dict)


class GateResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One measure of the quality gate ("latent", "image"): what was found and what was allowed."""

    measure: str
    value: float
    limit: float


class Gate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The end of the path against the unquantised student: relative L2 errors, means over ``images`` at ``nfe``.

    width, height: of the images, in pixels.
    """

    nfe: Count
    images: Count
    width: Count
    height: Count
    results: Sequence[GateResult]


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of the bundle: posix path relative to its root, sha256 in hexadecimal, size in bytes."""

    path: str
    sha256: Sha256
    size: Size


class ParityResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far a network was from its original at one shape when the bundle was built, and what was allowed.

    twin: measured on the network's twin, the same pipeline shrunk and with random weights, taken through the same
    code: the network itself is too large to be run where it was built. device: the name of the GPU on which its plan
    was run; "" for the ONNX network, which ran in ONNX Runtime on a CPU.
    """

    network: str
    shape: Mapping[str, int]
    relative_error: float
    limit: float
    twin: bool = False
    device: str = ""


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything the runtime must know of a bundle. ``files`` and ``digest`` are filled in by the writer.

    ``digest`` is the sha256 of ``manifest.json`` with its own 64 digits left out, so that no byte of the bundle
    can change unseen. ``parents`` holds the digests of what the bundle was made from, ``tools`` their versions.
    """

    model: Name
    architecture: Architecture
    precision: Word
    target: Word
    networks: Mapping[str, Network]
    limits: Limits
    latent: Latent
    schedule: Schedule
    momentum: Momentum
    tokenizers: Mapping[str, TokenizerSpec]
    parents: Mapping[str, str]
    tools: Mapping[str, str]
    parity: Sequence[ParityResult]
    engine: Engine | None = None
    quantisation: Quantisation | None = None
    gate: Gate | None = None
    files: Sequence[FileEntry] = ()
    digest: Digest = ""
    kind: Literal["arcflow-bundle"] = KIND
    schema_version: int = SCHEMA_VERSION
