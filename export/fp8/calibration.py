"""The calibration file: for one student, how large the inputs of its linears become. Small JSON, made to be shared.

It holds magnitudes, not scales, of every linear of the backbone: which layers are quantised is decided when a bundle is
built.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from export.errors import CalibrationError
from export.fp8.numbers import activation_scale
from export.fp8.observers import Method
from export.fp8.policy import layer_of
from export.weights.parents import UNREAD, Parents
from foundation.files import atomic_file

SCHEMA_VERSION = 1

NOMINAL_AMAX = 32.0
"""Magnitude that a synthetic calibration names for every layer: of no meaning for images."""

_LISTED = 3
HOW = "measure them: python -m export.calibrate --model NAME --out FILE"
"""What to do about a calibration that cannot be used; who knows the student's sources says it with them."""

Amax = Annotated[float, msgspec.Meta(ge=0.0)]
Count = Annotated[int, msgspec.Meta(ge=0)]


class Prompts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was generated: number of prompts, sha256 of their text (one a line), and the images' size in pixels."""

    number: Count
    sha256: str
    width: Count
    height: Count


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Measured magnitudes of one student's activations.

    student: the student's digest; method: how a layer's bound follows from what was seen (percentile: the share in
    percent, for that method alone); sigmas: noise levels at which the backbone was evaluated; synthetic: invented, for
    trials of the tools; amax: the bound by layer (state-dict name without ``.weight``); tools: versions of what made
    it; attention: bounds of query, key and value by attention, in the order of the graph; parents: what the student
    was merged from (None in files of before that was kept).
    """

    student: str
    method: Method
    percentile: float | None
    sigmas: tuple[float, ...]
    prompts: Prompts
    synthetic: bool
    amax: Mapping[str, Amax]
    tools: Mapping[str, str]
    attention: tuple[tuple[Amax, Amax, Amax], ...] = ()
    parents: Parents | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def digest(self) -> str:
        """sha256 of the content, however the file is written."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()

    def input_scales(self, weights: Sequence[str], how: str = HOW) -> dict[str, float]:
        """The input scale of each weight (state-dict name). Raises CalibrationError where a layer was not seen."""
        missing = [layer_of(weight) for weight in weights if layer_of(weight) not in self.amax]
        if missing:
            shown = ", ".join(missing[:_LISTED])
            raise CalibrationError(f"the calibration lacks {len(missing)} layers ({shown}, ...); {how}")
        return {weight: activation_scale(self.amax[layer_of(weight)]) for weight in weights}


def write_calibration(calibration: Calibration, path: Path) -> None:
    """Write the file whole or not at all; equal calibrations give equal bytes. Raises ArcFlowError."""
    text = msgspec.json.format(msgspec.json.encode(calibration, order="sorted"), indent=1)
    with atomic_file(path) as temporary:
        temporary.write_bytes(text + b"\n")


def read_calibration(path: Path, how: str = HOW) -> Calibration:
    """Read and check a file, whatever student it is of. how: what to do where it cannot be used.

    Raises CalibrationError where it is missing, damaged, or of another version.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CalibrationError(f"cannot read the calibration {path}: {error.strerror}; {how}") from error
    try:
        calibration = msgspec.json.decode(data, type=Calibration)
    except msgspec.DecodeError as error:
        raise CalibrationError(f"{path} is no calibration file ({error}); {how}") from error
    if calibration.schema_version != SCHEMA_VERSION:
        raise CalibrationError(
            f"{path} has schema version {calibration.schema_version}, {SCHEMA_VERSION} is known; {how}"
        )
    if not all(math.isfinite(value) for value in calibration.amax.values()):
        raise CalibrationError(f"{path} has values that are not finite; {how}")
    if calibration.parents is not None and calibration.parents.digest != calibration.student:
        raise CalibrationError(f"{path} names another student than it was measured on: it is damaged; {how}")
    return calibration


def check_student(calibration: Calibration, student: Parents, path: Path, how: str = HOW) -> None:
    """Hold a calibration, read from ``path``, to a student of which some digests may be UNREAD still.

    It must be of that student, or of the same without its style LoRAs: these move what layers see by less than FP8's
    range takes in (``benchmarks/style_scales.py``). Raises CalibrationError, which says what differs.
    """
    if calibration.parents is None:
        known = UNREAD not in (student.base, student.adapter)
        fits = not known or calibration.student in (student.digest, student.plain.digest)
        odd = [] if fits else ["base, adapter or LoRA"]
    else:
        odd = [
            name
            for name, own in (("base", calibration.parents.base), ("adapter", calibration.parents.adapter))
            if getattr(student, name) not in (UNREAD, own)
        ]
        odd += ["LoRA"] if calibration.parents.loras not in ((), student.loras) else []
    if odd:
        raise CalibrationError(
            f"{path} was measured on another {' and '.join(odd)}; it must be of the same base and adapter, with the "
            f"same LoRAs or none; {how}"
        )


def nominal(layers: Iterable[str], student: str) -> Calibration:
    """An invented calibration: the same bound for each of ``layers``. For trials where images do not matter."""
    return Calibration(
        student=student,
        method=Method.AMAX,
        percentile=None,
        sigmas=(),
        prompts=Prompts(number=0, sha256="", width=0, height=0),
        synthetic=True,
        amax=dict.fromkeys(sorted(layers), NOMINAL_AMAX),
        tools={},
    )
