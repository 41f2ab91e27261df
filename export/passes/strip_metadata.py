"""Take out everything that says where a graph was traced, so that the same inputs give the same bytes."""

from __future__ import annotations

import onnx_ir as ir

PRODUCER = "arcflow"


def strip_metadata(model: ir.Model, name: str) -> None:
    """Clear metadata and documentation of the model, its graph, nodes and values (stack traces, paths, versions).

    The graph is named ``name``; the producer is set without a version, which the bundle's manifest holds.
    """
    import onnx_ir.passes.common as common

    common.ClearMetadataAndDocStringPass()(model)
    graph = model.graph
    for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
        _clear(value)
    for node in graph.all_nodes():
        for value in node.outputs:
            _clear(value)
    graph.metadata_props.clear()
    graph.doc_string = None
    graph.name = name
    model.metadata_props.clear()
    model.doc_string = None
    model.producer_name, model.producer_version = PRODUCER, None
    model.domain, model.model_version = None, None


def _clear(value: ir.Value) -> None:
    value.metadata_props.clear()
    value.doc_string = None
