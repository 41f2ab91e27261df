"""Errors of the ``engines`` package."""

from __future__ import annotations

from foundation.errors import ArcFlowError


class BundleError(ArcFlowError):
    """A bundle's files are not exactly those that its manifest names, or cannot be read."""


class ManifestError(BundleError):
    """A manifest is damaged, incomplete, or contradicts itself."""


class SchemaVersionError(ManifestError):
    """A manifest is of a schema version that this ArcFlow does not know."""


class BundleNotFoundError(BundleError):
    """There is no bundle of that model, precision and target where bundles are looked for."""


class StaleBundleError(BundleError):
    """A bundle's plans do not fit this machine, or are not of the networks that they were built from."""


class TrustError(BundleError):
    """A bundle's plans were not built on this machine, or the key that tells so must not be used."""


class FlavourError(ArcFlowError):
    """The flavour of TensorRT that is needed is not installed, is broken, or is too old."""
