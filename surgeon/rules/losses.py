"""Losses inside a forward: a number for each place, then, as a rule, one for all."""

from __future__ import annotations

from typing import Any

from surgeon.rules import algebra, layout
from surgeon.rules.marks import Ledger, Marked
from surgeon.rules.registry import rule
from surgeon.rules.statistics import note_statistics

#: What torch doesn't take apart itself, as it does L1, Kullback-Leibler and others.
LOSSES = ("mse_loss", "smooth_l1_loss", "huber_loss", "soft_margin_loss", "binary_cross_entropy")


@rule(*LOSSES)
def loss(ledger: Ledger, *args: Any, **kwargs: Any) -> Marked:
    """As means, sums are taken over what is kept: the loss of two zeros needn't be zero."""
    joint = algebra.pointwise(ledger, *args, **kwargs)
    if not ledger.node.meta["shape"]:
        note_statistics(ledger, joint, range(len(joint.shape)))
        return Marked((), (), constant=joint.constant)
    return joint


@rule("nll_loss_forward", "nll_loss2d_forward", "multi_margin_loss", "multilabel_margin_loss_forward", "_ctc_loss")
def by_class(ledger: Ledger, *args: Any, **_: Any) -> Any:
    """The target says which channel counts."""
    return layout.opaque(ledger, args, 2)
