"""Plans compose: two cuts, one after the other, are one cut of the dense model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from surgeon.errors import PlanError
from surgeon.planning import Plan
from surgeon.planning.plan import removed_by_group, sizes_by_group
from surgeon.rewriting import fit
from surgeon.trial import Fit

__all__ = ["compose"]


def compose(dense: Any, first: Plan, then: Fit, example_inputs: Any = None) -> Plan:
    """The plan that cuts from `dense` at once what `first` cuts, and then another cut of the result.

    Parameters
    ----------
    dense:
        The model that `first` was made for.
    first:
        The first cut.
    then:
        How the second plan fits the model that `first` made (:func:`surgeon.rewriting.fit`).
    example_inputs:
        What both take, where `first` can't describe it.

    Raises
    ------
    PlanError, ConstantError
        If a plan doesn't fit its model, or both cuts at once put the channels in another order than one by one.
    """
    once = fit(dense, first, example_inputs)
    ours, theirs = then.graph.structure, once.graph.structure
    places = [place for place in ours.labels.space.places if place[0] in ours.labels.space.planes]
    kept = once.kept.copy()
    for name, axis in places:
        gone = torch.from_numpy(~then.kept[ours.along(name, axis)])
        kept[theirs.along(name, axis)[once.positions(name, axis)[gone].numpy()]] = False
    removed = removed_by_group(once.graph, kept)
    result = replace(first, removed=removed, sizes=sizes_by_group(once.graph, removed), fitted=None)
    both = fit(dense, result, example_inputs)
    for name, axis in places:
        if not torch.equal(both.positions(name, axis), once.positions(name, axis)[then.positions(name, axis)]):
            raise PlanError(
                f"the two cuts of {name} can't be made at once: its channels would stand in another order; apply the "
                "two plans one after the other"
            )
    return result
