"""Trial: what really happens to the channels when the user's own forward runs at other widths.

The files, in the order in which to read them:

- `search` is :func:`find_fit`: trials, until nothing that is known is left to bind; `fitting` makes one of them and
  matches its channels with the dense ones: the result is a :class:`Fit`.
- One trial: `skeleton` the model at other widths, `attributes` and `arrivals` what its layers say of them,
  `renumbering` its tensors of channel numbers, `running` its forward, `alignment` which call is which, `places` which
  place is which.
- Where it fails: `blame` names the place, as a :class:`Misfit`; `bindings` are numbers that follow a width, in the
  `targets` that hold them; `links` are groups in proportion.
- Where only a number is another one: `numbers` finds it, `folding` puts the change into weights.
"""

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
