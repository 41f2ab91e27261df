"""Errors of the ``arcflow`` package."""

from __future__ import annotations

from foundation.errors import ArcFlowError


class SourceError(ArcFlowError):
    """A base model, adapter or LoRA is neither a folder here nor to be had from the hub."""


class PublishError(ArcFlowError):
    """An adapter cannot be uploaded to the hub."""


class PromptsError(ArcFlowError):
    """Prompts cannot be read, or their encodings belong to others."""


class RecipeError(ArcFlowError):
    """A recipe is missing, or a value in it is not allowed."""


class AdapterError(ArcFlowError):
    """An adapter's files are missing, damaged, or do not fit the backbone."""


class DatasetError(ArcFlowError):
    """The training images are not where they are looked for, or are not what they should be."""


class CheckpointError(ArcFlowError):
    """A training checkpoint or a stage's result is missing or belongs to another run."""


class BackboneError(ArcFlowError):
    """A backbone's configuration is none that a student can be made of."""


class TrackingError(ArcFlowError):
    """The service that a run's figures were to be sent to cannot be used."""


class PipelineError(ArcFlowError):
    """A diffusers pipeline, or what is asked of it, is none that a student can serve."""


class FeaturesError(ArcFlowError):
    """A vision network that was to compare images is none, or is damaged."""


class StudyError(ArcFlowError):
    """A study's records are damaged or cannot be kept, or it was asked of a recipe that it cannot be made on."""
