"""From a teacher and an adapter to a verified bundle: merge, ONNX export, parity, ``python -m export.build``.

Each stage is a small function with typed input and output; nothing here is imported by :mod:`engines` or
:mod:`runtime`.
"""
