"""Take the weights out of a freshly traced graph and give them their state-dict names."""

from __future__ import annotations

import onnx_ir as ir

from export.errors import ExportError
from export.networks.base import INNER


def blank_weights(model: ir.Model) -> None:
    """Initializers ``network.<name>`` become ``<name>`` and lose their values, so that no pass folds or copies them.

    Afterwards an initializer without a value is a weight, still to be attached. Raises ExportError where the trace
    holds a tensor that is no parameter of the network: no weights file has it.
    """
    prefix = INNER + "."
    initializers = model.graph.initializers
    for old, value in list(initializers.items()):
        if not old.startswith(prefix):
            raise ExportError(f"the trace holds the constant tensor {old!r}, which no weights file has")
        del initializers[old]
        value.name = old.removeprefix(prefix)
        value.const_value = None
        initializers.add(value)
