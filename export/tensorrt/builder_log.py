"""What the builder says while it works: :mod:`engines.tensorrt_log`, under the name that builds use."""

from __future__ import annotations

from engines.tensorrt_log import TensorRTLog as BuilderLog
from engines.tensorrt_log import make_logger

__all__ = ["BuilderLog", "make_logger"]
