"""Rules: how each operator carries channels. Movement has none of its own: it is run on the labels."""

from surgeon.rules import (  # noqa: F401  # they fill the table
    contraction,
    elementwise,
    gathering,
    losses,
    matrices,
    movement,
    norms,
    patches,
    regions,
    spectra,
    statistics,
    windows,
    writing,
)
from surgeon.rules.algebra import join, pointwise, product_sum
from surgeon.rules.elementwise import POINTWISE
from surgeon.rules.layout import mix, move, on_axis, reduce, slide
from surgeon.rules.marks import FIXED, Anchor, Couple, Ledger, Marked, Pinned, Plane, Summed, Tie, Work, compact
from surgeon.rules.registry import TABLE, Rule, rule

__all__ = [
    "FIXED", "POINTWISE", "TABLE", "Anchor", "Couple", "Ledger", "Marked", "Pinned", "Plane", "Rule", "Summed", "Tie",
    "Work", "compact", "join", "mix", "move", "on_axis", "pointwise", "product_sum", "reduce", "rule", "slide",
]  # fmt: skip
