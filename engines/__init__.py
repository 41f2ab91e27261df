"""Bundles: the verified folders that carry a model from ``export`` to ``runtime``.

A bundle is a folder with a ``manifest.json`` (:mod:`engines.manifest`) that names every other file with its size
and sha256. :func:`engines.bundle.open_bundle` rejects anything that differs; :func:`engines.writer.write_bundle`
makes one, whole or not at all; :func:`engines.locate.locate` finds one by model, precision and target;
``python -m engines.verify PATH`` checks one from the command line. ``engines/bundles/`` holds the committed default.
:mod:`engines.trials` is how plans are asked to be run once.

Standard library, msgspec and :mod:`foundation` only.
"""
