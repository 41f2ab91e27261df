"""A student of FLUX or Qwen-Image and its teacher, sampled from the same noise with one backbone in memory.

The teacher samples first; then the adapter is merged into its backbone, which becomes the student. What is measured is
the student as it is deployed, and its weights that the adapter leaves alone are the teacher's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from arcflow.adapter import Adapter, Policy, merge_into
from arcflow.evaluation.endpoints import Endpoint, Endpoints
from arcflow.evaluation.samplers import Advance
from arcflow.pipelines.noise import image_noise
from arcflow.sampling import ClassifierFree, sample_student, sample_teacher
from arcflow.sources.base import Base
from arcflow.sources.digest import digest_of
from arcflow.sources.text import Encoding, TextEncoders
from arcflow.sources.weights import empty_backbone, fill
from arcflow.students import LAST, Coverage, build_student
from foundation.noise import image_seeds

STUDENT, TEACHER = "student", "teacher"
Sampler = tuple[str, int]
"""(kind, evaluations of a student or Euler steps of a teacher)."""


@dataclass(frozen=True)
class Wanted:
    """What is sampled.

    adapter, and its digest; prompts, and how many noises each: image n of all starts from the noise of
    first_seed + n modulo 2^64; size: (width, height) in pixels; nfe: numbers of evaluations; steps: the reference's
    Euler steps, more than any of nfe; tokens: the longest prompt; dtype: of the networks, the solver's is float32.
    """

    base: Base
    adapter: Adapter
    adapter_digest: str
    prompts: Sequence[str]
    seeds: int
    first_seed: int
    size: tuple[int, int]
    nfe: tuple[int, ...]
    steps: int
    tokens: int
    dtype: torch.dtype
    device: torch.device
    coverage: Coverage = "whole"

    @property
    def policy(self) -> Policy:
        """The adapter's: shift, guidance and rounding are those of teacher and student alike."""
        return self.adapter.config.policy

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of image tokens. Raises BackboneError for a size that tokens do not fill."""
        return self.base.grid(*self.size)

    @property
    def cases(self) -> list[tuple[int, int]]:
        """(number of the prompt, seed) of each image."""
        seeds = image_seeds(self.first_seed, len(self.prompts) * self.seeds)
        return [(n // self.seeds, seed) for n, seed in enumerate(seeds)]

    @property
    def reference(self) -> Sampler:
        """The teacher's many steps."""
        return TEACHER, self.steps

    def check(self) -> tuple[int, int]:
        """Bytes of the backbone, and at most while it becomes the student. Nothing is read or allocated.

        Raises AdapterError where the adapter does not fit the base, BackboneError for a size that is not allowed.
        """
        _ = self.grid
        blank = self.base.blank()
        _become(self, blank)
        backbone = sum(p.numel() for p in blank.parameters())
        merged = sum(blank.get_submodule(name).weight.numel() for name in self.adapter.lora)
        return self.dtype.itemsize * backbone, self.dtype.itemsize * (backbone + merged)


def evaluations(wanted: Wanted) -> dict[str, int]:
    """Network evaluations that the teacher and the student take in all; guidance without an input takes two."""
    images, few = len(wanted.cases), sum(wanted.nfe)
    each = 1 if wanted.base.architecture.EMPTY is None else 2
    return {TEACHER: images * (wanted.steps + few) * each, STUDENT: images * few}


def sample(wanted: Wanted, endpoints: Endpoints, advance: Advance) -> dict[Sampler, list[Endpoint]]:
    """The endpoints of all images by sampler, the reference first. What ``endpoints`` has is not sampled again.

    Raises BackboneError where the base cannot be read.
    """
    arch, policy, device = wanted.base.architecture, wanted.policy, wanted.device
    encodings = _encode(wanted)
    digests = [digest_of(encoding) for encoding in encodings]
    networks = _Networks(wanted)
    known = {
        "backbone": networks.digest,
        "policy": [policy.shift, policy.guidance, policy.conditioning_dtype],
        "grid": wanted.grid,
        "dtype": str(wanted.dtype),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "empty": digests[len(wanted.prompts) :],
    }
    guidance = None
    if arch.EMPTY is not None:
        guidance = ClassifierFree(policy.guidance, arch.condition(encodings[-1:], policy.guidance, *wanted.grid))
    shift, ratio, trained = policy.shift, policy.final_step_ratio, policy.conditioning_dtype

    def end(sampler: Sampler, prompt: int, seed: int) -> Tensor:
        kind, count = sampler
        x = image_noise(seed, wanted.grid[0] * wanted.grid[1], networks.channels).to(device)
        condition = arch.condition([encodings[prompt]], policy.guidance, *wanted.grid).to(device)
        if kind == TEACHER:
            return sample_teacher(arch, _Cast(networks.teacher()), x, condition, count, shift, guidance, trained)[0]
        return sample_student(arch, _Cast(networks.student()), x, condition, count, shift, ratio, (), trained)[0]

    def run(sampler: Sampler, about: Mapping[str, Any], ready: Callable[[], object]) -> list[Endpoint]:
        found = []
        for done, (prompt, seed) in enumerate(wanted.cases, start=1):
            depends = {**known, **about, "sampler": sampler, "prompt": digests[prompt], "seed": seed}
            there = endpoints.find(depends)
            if there is None:
                ready()  # Reading and merging are no part of an image's seconds.
                there = endpoints.add(depends, partial(end, sampler, prompt, seed), device)
            found.append(there)
            advance(_name(sampler), done, len(wanted.cases))
        return found

    ends = {(TEACHER, n): run((TEACHER, n), {}, networks.teacher) for n in (wanted.steps, *wanted.nfe)}
    about = {"adapter": wanted.adapter_digest, "policy": asdict(policy), "coverage": wanted.coverage}
    return ends | {(STUDENT, n): run((STUDENT, n), about, networks.student) for n in wanted.nfe}


class _Networks:
    """One backbone, read when it is first needed: the teacher's, and from the first call of ``student`` on its.

    digest: of its last layers, which tell one base from another of the same shape.
    """

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._teacher: Any = empty_backbone(wanted.base, "fp32")
        for parameter in self._teacher.parameters():
            parameter.data = parameter.data.to(wanted.dtype)  # Nothing is there yet: read, they are of this type.
        self._student: Any = None
        fill(self._teacher, wanted.base, torch.device("cpu"), LAST)
        last = self._teacher.state_dict().items()
        self.digest = digest_of({name: tensor for name, tensor in last if not tensor.is_meta})
        self.channels = int(self._teacher.config.in_channels)

    def teacher(self) -> Any:
        fill(self._teacher, self._wanted.base, self._wanted.device)
        return self._teacher.to(self._wanted.device)

    def student(self) -> Any:
        if self._student is None:
            self._student = _become(self._wanted, self.teacher())
            self._teacher = None
        return self._student


class _Cast(nn.Module):
    """A backbone fed in its own dtype by a solver that computes in float32."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone

    @torch.no_grad()
    def forward(self, hidden_states: Tensor, **inputs: Any) -> Any:
        """One evaluation, see ``evaluate`` of the architecture."""
        return self.backbone(hidden_states=hidden_states.to(self.backbone.dtype), **inputs)


def _become(wanted: Wanted, teacher: nn.Module) -> nn.Module:
    """The student, of the teacher's backbone: weights that the adapter leaves alone are taken and not copied."""
    with torch.device("meta"):
        student = build_student(wanted.base.config, wanted.adapter.config.modes, wanted.base.architecture.NAME)
    merge_into(student, teacher.state_dict(), wanted.adapter, wanted.coverage, assign=True)
    return student.requires_grad_(False).eval()


def _encode(wanted: Wanted) -> list[Encoding]:
    """Encodings of the prompts and, where guidance is measured from one, of the empty prompt after them."""
    empty = wanted.base.architecture.EMPTY
    text = TextEncoders(wanted.base, wanted.tokens, wanted.dtype, wanted.device)
    found = list(text.encode([*wanted.prompts, *(() if empty is None else (empty,))]))
    text.close()
    return found


def _name(sampler: Sampler) -> str:
    kind, count = sampler
    return f"teacher, {count} steps" if kind == TEACHER else f"student, {count} NFE"
