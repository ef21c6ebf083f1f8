"""Trial: what really happens to the channels when the user's own forward runs at other widths."""

from surgeon.trial.alignment import align, calls
from surgeon.trial.arrivals import arrivals
from surgeon.trial.blame import Misfit
from surgeon.trial.fitting import Fit, fit, fit_recording, settle
from surgeon.trial.running import widths_of
from surgeon.trial.skeleton import named_tensors, replace_tensors, with_tensors

__all__ = [
    "Fit",
    "Misfit",
    "align",
    "arrivals",
    "calls",
    "fit",
    "fit_recording",
    "named_tensors",
    "replace_tensors",
    "settle",
    "widths_of",
    "with_tensors",
]
