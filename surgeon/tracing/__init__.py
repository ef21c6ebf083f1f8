"""Trace: one forward of any eager module, recorded as a ``torch.fx.Graph`` of ATen calls."""

from surgeon.tracing.calling import as_before, copied_inputs, results_of, running
from surgeon.tracing.copying import copied
from surgeon.tracing.decisions import MASKS, reads_places
from surgeon.tracing.graphs import as_graph
from surgeon.tracing.guard import check_model, in_mode, outside_inference_mode, unwrap
from surgeon.tracing.inputs import Inputs
from surgeon.tracing.members import modules, named_modules, named_parameters, named_tensors
from surgeon.tracing.recent import Recent
from surgeon.tracing.recording import Trace, Unfinished, record
from surgeon.tracing.replay import Call, Replay, plain_call
from surgeon.tracing.source import Site, Source, error_site, is_copy, moves_numbers, operator_name
from surgeon.tracing.tracing import trace

__all__ = [
    "MASKS", "Call", "Inputs", "Recent", "Replay", "Site", "Source", "Trace", "Unfinished", "as_before", "as_graph",
    "check_model", "copied", "copied_inputs", "error_site", "in_mode", "is_copy", "modules", "moves_numbers",
    "named_modules", "named_parameters", "named_tensors", "operator_name", "outside_inference_mode", "plain_call",
    "reads_places", "record", "results_of", "running", "trace", "unwrap",
]  # fmt: skip
