"""Trial: what really happens to the channels when the user's own forward runs at other widths."""

from surgeon.trial.alignment import align, next_call, partners, same_calls
from surgeon.trial.arrivals import arrivals
from surgeon.trial.bindings import Binding, calls_alike, line_and_operator
from surgeon.trial.blame import Misfit, channels_at, find_misfit
from surgeon.trial.fitting import Counts, Fit, Strangers, counts_at, fit_recording
from surgeon.trial.links import find_links
from surgeon.trial.running import widths_of
from surgeon.trial.search import Search, find_fit
from surgeon.trial.skeleton import replace_tensors, with_tensors

__all__ = [
    "Binding",
    "Counts",
    "Fit",
    "Misfit",
    "Search",
    "Strangers",
    "align",
    "arrivals",
    "calls_alike",
    "channels_at",
    "counts_at",
    "find_fit",
    "find_links",
    "find_misfit",
    "fit_recording",
    "line_and_operator",
    "next_call",
    "partners",
    "replace_tensors",
    "same_calls",
    "widths_of",
    "with_tensors",
]
