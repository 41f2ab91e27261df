"""What an architecture is to the exporter: data, and four functions. Everything else asks it and knows no names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from arcflow.architectures.conditioning import ConditioningDtype
    from engines.schema import Latent, Limits
    from export.networks.base import Network
    from export.sources.tokenizers import TokenizerFile
    from export.weights.merge import MergedStudent

Tensors = Mapping[str, "Tensor"]


@dataclass(frozen=True)
class Part:
    """Where one network comes from.

    folder: of the base pipeline, with its configuration and weights; module: of :mod:`export.networks`, whose function
    ``<module>_network`` describes it, given that folder; merged: whether its weights are the student's, which that
    function is then given as well; scheduled: whether also the most evaluations that a schedule may have.
    """

    folder: str
    module: str
    merged: bool = False
    scheduled: bool = False


@dataclass(frozen=True)
class Architecture:
    """A kind of model. To add a network, add a part.

    parts: its networks, in the order in which an image needs them; student: the whole student, which is calibrated,
    whatever networks it is cut into; max_nfe: the most evaluations of an image unless told otherwise; tokenizers: of a
    base pipeline's folder, for a bundle of these limits; latent: its geometry and normalisation, likewise.

    encodings: what the backbone is told of prompts, from the ids and masks [prompts, tokens] that the tokenizers give
    and from what makes a text encoder's output of such inputs; by port, each [prompts, ...].
    ports: the backbone's inputs but hidden_states and timestep, from the encodings of a batch, the guidance, what the
    student was trained in, and the rows and columns of image tokens.

    All but the first may raise ExportError or WeightsError.
    """

    name: str
    parts: Mapping[str, Part]
    student: Part
    max_nfe: int
    tokenizers: Callable[[Path, Limits], dict[str, TokenizerFile]]
    latent: Callable[[Path], Latent]
    encodings: Callable[
        [Mapping[str, TokenizerFile], Sequence[str], Callable[[str, Tensors], Tensor]], dict[str, Tensor]
    ]
    ports: Callable[[Tensors, float, ConditioningDtype, int, int], dict[str, Tensor]]

    @property
    def folders(self) -> tuple[str, ...]:
        """All folders of a base pipeline that hold weights, each once."""
        return tuple(dict.fromkeys(part.folder for part in self.parts.values()))

    def network(self, name: str, base: Path, student: MergedStudent, max_nfe: int | None = None) -> Network:
        """One of the networks, from a pipeline's folder and a student of it. Raises ExportError, WeightsError."""
        return _network(self.parts[name], base, student, max_nfe or self.max_nfe)

    def student_network(self, base: Path, student: MergedStudent) -> Network:
        """The whole student, at any noise level. Raises ExportError, WeightsError."""
        return _network(self.student, base, student, self.max_nfe)


def _network(part: Part, base: Path, student: MergedStudent, max_nfe: int) -> Network:
    describe = getattr(import_module(part.module), f"{part.module.rpartition('.')[2]}_network")
    given = (*((student,) if part.merged else ()), *((max_nfe,) if part.scheduled else ()))
    network: Network = describe(base / part.folder, *given)
    return network
