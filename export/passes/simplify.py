"""Fold what is constant, drop what does nothing, merge what is there twice."""

from __future__ import annotations

import onnx_ir as ir

_ROUNDS = 3
"""Folding and rewriting feed each other; graphs of this size settle within these rounds."""

_PLAIN = 20
"""The last opset whose graphs are for CPUs alone; from the next on they are for engines too."""

_FUSED = 23
"""The first opset with RMSNormalization."""


def simplify(model: ir.Model) -> None:
    """Simplify the graph; it computes the same. Weights without values stay untouched.

    Up to opset 20 what a CPU does node by node is made fewer nodes, with the same values to the bit. Beyond, sequences
    are replaced by slices, and from 23 on RMS norms are one node each. The rewriter's rule that turns slices into a
    split is left out: its cost is quadratic in the graph's size.
    """
    import onnx_ir.passes.common as common
    from onnxscript.optimizer import fold_constants
    from onnxscript.rewriter import RewritePass
    from onnxscript.rewriter.rules import common as rules

    from export.passes.fuse_rms_norm import fuse_rms_norm
    from export.passes.replace_sequences import replace_sequences
    from export.passes.swap_pairs import swap_pairs
    from export.passes.transpose_keys import transpose_keys
    from export.passes.unsqueeze_first import unsqueeze_first

    chosen = [
        rules.add_0_rule,
        rules.sub_0_rule,
        rules.mul_by_1_rule,
        rules.div_by_1_rule,
        rules.cast_cast_rule,
        rules.no_op_cast_rule,
        rules.no_op_expand_rule,
        rules.no_op_transpose_rule,
        rules.transpose_transpose_rule,
        rules.reshape_reshape_rule,
        rules.squeeze_reshape_1d_rule,
        rules.unsqueeze_unsqueeze_rule,
        rules.collapse_slice_rule,
        rules.collapse_slice2_rule,
        rules.materialize_reshape_shape_rule,
        rules.one_reshape_matmul_reshape_rule,
        rules.two_reshapes_matmul_reshape_rule,
    ]
    common.InlinePass()(model)
    for _ in range(_ROUNDS):
        fold_constants(model)
        RewritePass(chosen)(model)
        common.RemoveUnusedNodesPass()(model)
    opset = model.opset_imports[""]
    if opset > _PLAIN:
        replace_sequences(model)
    else:
        common.CommonSubexpressionEliminationPass()(model)
        for slim in (transpose_keys, unsqueeze_first, swap_pairs):
            slim(model)
        common.RemoveUnusedNodesPass()(model)
    if opset >= _FUSED:
        # A value that was cast twice must be one value before its norm can be told.
        common.CommonSubexpressionEliminationPass()(model)
        fuse_rms_norm(model)
        common.RemoveUnusedNodesPass()(model)
    common.IdentityEliminationPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.DeduplicateInitializersPass()(model)
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedFunctionsPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    common.OutputFixPass()(model)
    common.NameFixPass()(model)
