"""Calibration batches: both models recorded on each, and rows drawn from them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from surgeon.channels import channel_graph
from surgeon.errors import HealingError, SurgeonError
from surgeon.healing.outlook import Goal, Outlook, find_outlook
from surgeon.healing.sites import Site, find_sites
from surgeon.planning import Plan
from surgeon.processes import from_first
from surgeon.products import Walk, operand_of
from surgeon.tracing import Inputs, record, trace
from surgeon.trial import Fit, Misfit, fit_recording
from surgeon.verification.comparison import kept_places

#: The last of so many parts of a batch judges, and is not learned from.
HELD_OUT = 8
#: Rows are handed out in pieces of so many numbers: the windows of a convolution take many times its input's memory.
_MOST_NUMBERS = 2**24


@dataclass
class Pair:
    """Both models on one batch, run side by side as far as the layer that is being healed.

    Attributes
    ----------
    fitted:
        How the models belong together; its recordings may be those of another batch of the same shapes.
    sites:
        What is to be healed; batches of other shapes have recordings of their own, with the same layers in order.
    dense, small:
        Where each of them is.
    number:
        That of the batch among those of all processes; None for one that stands in where this process has none of its
        own: it runs along, and nothing is learned from it.
    given:
        What the dense layer multiplies.
    """

    fitted: Fit
    sites: list[Site]
    dense: Walk
    small: Walk
    number: int | None
    given: Tensor | None = None

    def arrive(self, number: int) -> None:
        """Run the dense model past the site of that number, the small one to it."""
        site = self.sites[number]
        self.dense.run_until(site.dense.name, including=False)
        self.given = self.dense.value(operand_of(site.dense).name)
        self.dense.run_until(site.dense.name, including=True)
        self.small.run_until(site.product.node.name, including=False)

    def mark(self) -> tuple[Any, Any]:
        """Where both are; to come back to."""
        return self.dense.mark(), self.small.mark()

    def back(self, mark: tuple[Any, Any]) -> None:
        """Go back to a mark."""
        self.dense.back(mark[0])
        self.small.back(mark[1])

    def count(self, number: int) -> int:
        """How many rows the small layer has; the dense one has more where they are channels that were cut (mixers)."""
        product = self.sites[number].product
        return product.form.count(torch.empty(product.node.meta["shape"], device="meta"))

    def goal(self, number: int) -> Goal:
        """What the small layer should give: the dense layer's kept outputs, and what the shortcut is off by."""
        outlook, wanted, added = self._met(number)
        return outlook.goal(wanted, added)

    def _met(self, number: int) -> tuple[Outlook, Tensor, tuple[Tensor, Tensor] | None]:
        """What becomes of the layer's output, the dense layer's, and what both models add to it."""
        site = self.sites[number]
        outlook, added = find_outlook(self.fitted, site.product.node, self._norms(site)), None
        if outlook.small is not None and outlook.dense is not None:
            added = self._kept(outlook.dense, outlook.small), self.small.value(outlook.small.name)
        return outlook, self._kept(site.dense, site.product.node), added

    def dense_mean(self, site: Site) -> Tensor | None:
        """The running mean of the dense norm: what is taken off it, the layer in front seems to add."""
        part = site.product.mean
        if part is None:
            return None
        sliced = self.fitted.gather(part.name, self.fitted.graph.trace.tensors[part.name].detach())
        return sliced.reshape(-1)[part.index.to(sliced.device)].double()

    def _norms(self, site: Site) -> Mapping[str, Tensor]:
        """The small model's tensors as the layer's intercept is counted from: with the dense norm's mean behind it."""
        tensors, part = self.fitted.small.labels.trace.tensors, site.product.mean
        mean = self.dense_mean(site)
        return (
            tensors
            if part is None or mean is None
            else {**tensors, part.name: part.written(tensors[part.name].detach().double(), mean)}
        )

    def _kept(self, dense: fx.Node, small: fx.Node) -> Tensor:
        found = kept_places(self.fitted, dense, small, self.dense.value(dense.name))
        assert found is not None
        return found

    def rows(self, number: int, quota: int, seed: int, *, judges: bool = False) -> Iterator[tuple[bool, Tensor, Goal]]:
        """Rows of inputs and what they should give: ``(held out, x, goal)``; at most `quota`, from all over the batch.

        `seed`: of which they are. `judges`: whether to hold out the row of a batch that has but one.
        """
        site = self.sites[number]
        form, count = site.product.form, self.count(number)
        outlook, wanted, added = self._met(number)
        goal = outlook.goals(wanted, added, form.outputs)
        chosen = torch.arange(count)
        if count > quota:
            chosen = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:quota].sort().values
        edge = count - max(count // HELD_OUT, 1) if count > 1 else count - judges
        x = self.small.value(site.product.operand.name)
        size = max(_MOST_NUMBERS // form.matrix(site.product.weight.index).shape[1], 1)
        for held in (False, True):
            for some in torch.split(chosen[(chosen >= edge) == held], size):
                some = some.to(x.device)
                yield held, form.inputs(x, some), goal(some)


def read_batches(
    dense: nn.Module,
    small: nn.Module,
    plan: Plan,
    batches: Iterable[tuple[int | None, Inputs]],
    changed: Collection[str] = (),
) -> tuple[list[Pair], dict[str, Tensor]]:
    """Both models recorded on every batch, and the small model's tensors, which all pairs share.

    `batches`: with the number of each (:attr:`Pair.number`). `changed`: the small model's weights that aren't slices
    of the dense ones.

    Raises
    ------
    HealingError
        If the small model isn't what the plan makes of the dense one, or batches run different layers.
    """
    known: dict[Any, Fit] = {}
    tensors: dict[str, Tensor] = {}
    pairs: list[Pair] = []
    device = next((p.device for p in dense.parameters()), torch.device("cpu"))
    for index, given in batches:
        inputs = given.to(device)
        fitted = known.get(inputs.key) or _fit(dense, small, plan, inputs)
        if fitted.graph.trace.reusable:
            known[inputs.key] = fitted
        traces = fitted.graph.trace, fitted.small.labels.trace
        if not pairs:
            tensors |= {name: t for name, t in traces[1].tensors.items() if not name.startswith("_constant_")}
        walks = Walk(replace(traces[0], inputs=inputs), {}), Walk(replace(traces[1], inputs=inputs), tensors)
        pairs.append(Pair(fitted, find_sites(fitted, changed), *walks, index))
        if [site.key for site in pairs[0].sites] != [site.key for site in pairs[-1].sites]:
            raise HealingError(
                f"batch {len(pairs)} runs other layers than the first one (a forward that goes through its input step "
                "by step?): pass batches of one shape"
            )
    return pairs, tensors


def _fit(dense: nn.Module, small: nn.Module, plan: Plan, inputs: Inputs) -> Fit:
    try:
        graph = channel_graph(trace(dense, inputs, real=True))
    except SurgeonError:
        raise
    except Exception as problem:
        raise HealingError(
            f"the model's forward rejects a batch: {type(problem).__name__}: {problem}; pass batches of what it takes, "
            "or (inputs, targets), or say with inputs_of (of prune: calibration) what it takes of them"
        ) from problem
    try:
        return fit_recording(graph, record(small, inputs, graph.trace), plan.kept(graph))
    except Misfit as misfit:
        raise HealingError(
            f"the small model isn't what the plan makes of the dense one at {misfit.node.meta.get('site')}: "
            f"{misfit.why}; heal with the plan that it was cut by"
        ) from misfit


def read_inputs(batch: Any, plan: Plan, inputs_of: Callable[[Any], Any] | None) -> Inputs:
    """What the model takes of a batch."""
    return Inputs.from_batch(batch, Inputs.outline(plan.inputs) if plan.inputs else Inputs((None,)), inputs_of)


def example_of(plan: Plan, batches: Sequence[tuple[int, Inputs]]) -> Inputs:
    """What the plan was made with, or the like of it; else the like of the first process's batch."""
    if plan.fitted is not None:
        return plan.fitted.graph.trace.inputs
    return Inputs.from_spec(plan.inputs or from_first(lambda: batches[0][1].spec()))
