"""Put the weights beside a graph that was traced without them: external data, in constant memory."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from export.assembling.stored import StoredTensors, blanks, plan_stored
from export.networks.base import Network
from export.weights.external import Report, StoredFile, layout, write_external


def data_name(network: str) -> str:
    """The file of a network's external data, in the folder of its graph."""
    return f"{network}.safetensors"


def attach_external(
    model: ir.Model, network: Network, folder: Path, identity: str = "", report: Report | None = None
) -> StoredFile:
    """Store what every blank initializer asks for (:mod:`export.assembling.stored`) in ``folder``, for the graph.

    The graph must then be written into the same folder: the location is a plain file name. identity: digest of the
    weights; a file that was begun for the same graph and the same identity is continued, a finished one is kept.

    Memory: runs of at most :data:`export.weights.files.CHUNK`, a few copies. Raises WeightsError where the weights lack
    a tensor, have another shape, are not finite or overflow; ExportError where the disk rejects.
    """
    plan = plan_stored(model, network)
    entries = [stored.entry for stored in plan.values()]
    tensors = StoredTensors(network.weights, plan)
    stored = write_external(folder / data_name(network.name), entries, tensors.runs, identity, report)
    values, offsets = blanks(model), layout(entries).offsets
    for entry in entries:
        value = values[entry.name]
        if value.dtype is None:
            continue  # plan_stored rejected it.
        value.const_value = ir.ExternalTensor(
            data_name(network.name),
            offsets[entry.name],
            entry.size,
            value.dtype,
            shape=ir.Shape(entry.shape),
            name=entry.name,
            base_dir=folder,
        )
    return stored
