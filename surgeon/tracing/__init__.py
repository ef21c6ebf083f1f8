"""Trace: one forward of any eager module, recorded as a ``torch.fx.Graph`` of ATen calls.

The files, in the order in which to read them:

- `tracing` is :func:`trace`; `recording` runs a forward and its further passes, `recorder` writes down each call.
- `inputs` what a forward is called with, `members` what a model holds, `source` where a call stands in the program.
- What a call is recorded as: `traits` what holds for an operator, `canonical` products in one form, `parts` fused calls
  taken apart, `functions` custom autograd functions, `inplace` writes that are left, `indices` numbers that say where,
  `shapes` calls without numbers.
- What the data decides: `decisions` follows the first recording, `detours` goes where the data didn't lead. What is
  drawn: `chance` tells noise from what the forward seeds itself.
- What is left as it was: `guard` what may be traced and how it runs, `keeping` what a forward may write to, `calling` a
  forward that is run rather than recorded, `copying` a model with other tensors.
- What becomes of a recording: `unread` is dropped, `replay` runs it again, `recent` keeps the last few.
- `graphs` makes a graph module of a model; `symbolic` traces it with all sizes open.
"""

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
