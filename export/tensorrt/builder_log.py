"""What the builder says while it works: :mod:`engines.tensorrt`, under the name that builds use."""

from __future__ import annotations

from engines.tensorrt import TensorRTLog as BuilderLog
from engines.tensorrt import make_logger

__all__ = ["BuilderLog", "make_logger"]
