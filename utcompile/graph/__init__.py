"""One name for every spelling of an operation; shapes, channel axis, module scope, dependence."""

from utcompile.graph.affine_norm import affine_batch_norm, set_affine_norms
from utcompile.graph.classes import CLASSES, is_layout, is_slice
from utcompile.graph.collector import collector_paused
from utcompile.graph.context import Context
from utcompile.graph.evaluate import Cast, as_it_is, run_node
from utcompile.graph.flop_counts import flops
from utcompile.graph.fused_attention import fused_arguments, is_fused_attention, set_fused_arguments
from utcompile.graph.inplace import clear_inplace, index_memory, set_inplace
from utcompile.graph.layout import KINDS, Layout
from utcompile.graph.leaves import hooks_for_all, is_layer, is_leaf, more_than_its_class
from utcompile.graph.meta import describe, origin_of, place_of, readers, tensor, value_of
from utcompile.graph.module import UtcGraphModule, copy_graph, keep_state
from utcompile.graph.node_info import Frame, InPlace, Origin, Role, Seen, info, inserted
from utcompile.graph.observed import autocast_dtype, runs_plainly
from utcompile.graph.operations import (
    ACTIVATIONS,
    Operation,
    is_state,
    module_operation,
    operand,
    operation,
    set_operand,
    state_name,
)
from utcompile.graph.precision import full_precision
from utcompile.graph.recurrence import set_trainable_recurrence
from utcompile.graph.spellings import function_of, module_of
from utcompile.graph.state import (
    drop_state,
    every_name,
    find_state,
    is_parameter,
    owner_of,
    owner_path,
    path_in,
    replace_state,
    set_parameter,
    state_at,
)
from utcompile.graph.value import BATCH, Computed, Fitter, Size, Symbol, Value
from utcompile.graph.view import GraphView, dependence_graph
from utcompile.graph.walk import ancestors, between, descendants

__all__ = [
    "ACTIVATIONS",
    "BATCH",
    "CLASSES",
    "KINDS",
    "Cast",
    "Computed",
    "Context",
    "Fitter",
    "Frame",
    "GraphView",
    "InPlace",
    "Layout",
    "Operation",
    "Origin",
    "Role",
    "Seen",
    "Size",
    "Symbol",
    "UtcGraphModule",
    "Value",
    "affine_batch_norm",
    "ancestors",
    "as_it_is",
    "autocast_dtype",
    "between",
    "clear_inplace",
    "collector_paused",
    "copy_graph",
    "dependence_graph",
    "descendants",
    "describe",
    "drop_state",
    "every_name",
    "find_state",
    "flops",
    "full_precision",
    "function_of",
    "fused_arguments",
    "hooks_for_all",
    "index_memory",
    "info",
    "inserted",
    "is_fused_attention",
    "is_layer",
    "is_layout",
    "is_leaf",
    "is_parameter",
    "is_slice",
    "is_state",
    "keep_state",
    "module_of",
    "module_operation",
    "more_than_its_class",
    "operand",
    "operation",
    "origin_of",
    "owner_of",
    "owner_path",
    "path_in",
    "place_of",
    "readers",
    "replace_state",
    "run_node",
    "runs_plainly",
    "set_affine_norms",
    "set_fused_arguments",
    "set_inplace",
    "set_operand",
    "set_parameter",
    "set_trainable_recurrence",
    "state_at",
    "state_name",
    "tensor",
    "value_of",
]
