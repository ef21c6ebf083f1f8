"""``prune``: the whole pipeline in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.automatic import Automatic
from surgeon.channels import ChannelGraph
from surgeon.composition import compose
from surgeon.criteria import Request, find_criterion
from surgeon.criteria.gradients import Floats, ForwardLoss, check_losses
from surgeon.cutting import Clock, Cut, Cutter, read_graph
from surgeon.errors import BudgetError, HealingError, ModelError, ScoreError
from surgeon.exclusive import collecting_new, one_at_a_time
from surgeon.healing import LEVELS, LayerHealing
from surgeon.healing import heal as run_healing
from surgeon.planning import Plan, names_of_layers, plain_amounts
from surgeon.planning.steps import check_schedule, goals_of, remaining
from surgeon.processes import agree, fingerprint, repeatable, together
from surgeon.report import Report, make_report, sizes, tensor_bytes
from surgeon.rewriting import fit, rewrite
from surgeon.rules import reasons
from surgeon.tracing import as_graph as to_graph
from surgeon.tracing import check_model, named_tensors, outside_inference_mode, unwrap
from surgeon.verification import Check


@dataclass(frozen=True)
class Result:
    """What :func:`prune` gives back: the smaller model, the plan that made it, and the report."""

    model: nn.Module
    plan: Plan
    report: Report


@outside_inference_mode
@together("pruning")
@one_at_a_time
@collecting_new()
def prune(
    model: nn.Module,
    example_inputs: Any,
    *,
    filters: int | None = None,
    ratio: float | None = None,
    max_macs: float | str | None = None,
    max_params: float | str | None = None,
    max_activations: float | str | None = None,
    max_latency: float | str | None = None,
    criterion: str | Callable[[Request], Floats] = "taylor",
    dataloader: Iterable[Any] | None = None,
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    forward_loss: ForwardLoss | None = None,
    scope: str = "global",
    round_to: int | str | None = None,
    ignored_layers: Iterable[nn.Module | str] = (),
    units: Iterable[nn.Module | str] = (),
    min_channels: int = 1,
    heal: str = "none",
    calibration: Iterable[Any] | None = None,
    steps: int = 1,
    schedule: str | None = None,
    verify: bool = True,
    strict: bool = False,
    inplace: bool = False,
    as_graph: bool = False,
    micro_batch: int | None = None,
    inputs_of: Callable[[Any], Any] | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Result:
    """Cut the least useful channels out of `model` and prove that the cut is right.

    In several processes (of ``torch.distributed``) each goes through its share of the batches, and all get the same
    plan and the same model; all must call this, with the same model, data and options.

    Parameters
    ----------
    model, example_inputs:
        Any eager module, and what its forward takes: a tensor, a tuple of arguments, or :class:`surgeon.Inputs`.
    filters, ratio, max_macs, max_params, max_activations, scope, round_to, ignored_layers, units, min_channels:
        How much, and how: see :func:`surgeon.make_plan`.
    max_latency:
        Keep within a share (``"60%"``, 0.6) of the time that the model takes on the example inputs (their batch size
        counts), or a time (``"12ms"``), on this device, with as many threads as torch has now. The cut model is timed
        beside the dense one, and the plan corrected until the limit holds within 5 %.
        ``report.timing`` says what was predicted and what was measured.
    criterion, dataloader, loss_fn, forward_loss:
        What ranks the channels: see :func:`surgeon.score`. Batches of an iterator, which runs out, are kept in memory.
    heal, calibration:
        How to recover accuracy without training (:func:`surgeon.heal`), and on which batches; default: those of
        `dataloader`, whose targets aren't looked at.
    steps, schedule:
        Cut in so many steps, ranked and healed anew in each: ``"linear"``, ``"cubic"`` or ``"equal-ratio"`` towards the
        budget, or ``"per-step"``: `filters` in every step. Default: the latter for `filters`, ``"linear"`` for others.
    verify:
        Check the cut model (:func:`surgeon.verify`); a failure raises and nothing is returned.
    strict:
        Fail if a layer that isn't an output and wasn't ignored has to keep channels.
    inplace:
        Change `model` itself (after the check has passed).
    as_graph:
        Make it a ``torch.fx.GraphModule`` first. Widths that the forward spells out (``x.view(-1, 8 * 36)``) are then
        rewritten, where else their channels stay; the class is the only other thing that changes, and
        :func:`surgeon.load` needs no class of yours.
    micro_batch:
        Rank with at most so many examples in memory at once: see :func:`surgeon.score`.
    inputs_of:
        What the model takes of a batch, where that isn't the batch itself or the first part of ``(inputs, targets)``:
        for healing, and for criteria that look at no targets.
    seed:
        For everything that draws.
    progress:
        Called as ``progress(stage, done, total)``.

    Raises
    ------
    ModelError, InputError, BudgetError, SelectionError, NothingToCutError, ScoreError, VerificationError,
    HealingError
        Each says where, what came, what was expected and what to do next. The model is untouched then.
    ProcessError
        If the call failed in another process, or the processes were given different models.
    """
    module = check_model(model)
    _check_early(criterion, dataloader, steps)
    check_losses(loss_fn, forward_loss)
    check_schedule(schedule)
    _check_healing(heal, dataloader, calibration, criterion)
    if as_graph:
        module = _graph_module(module, example_inputs, inplace=inplace, units=units)
    # a cut whose check fails may be ranked again
    batches = None if dataloader is None else repeatable(dataloader)
    calibration = batches if calibration is None else repeatable(calibration)
    agree("weights", lambda: fingerprint(named_tensors(module)))
    clock = Clock(progress)
    scoring = {"loss_fn": loss_fn, "forward_loss": forward_loss, "micro_batch": micro_batch, "inputs_of": inputs_of}
    planning = {
        "scope": scope, "round_to": round_to, "min_channels": min_channels,
        "ignored_layers": names_of_layers(check_model(model), ignored_layers),
        "units": names_of_layers(module, units),
    }  # fmt: skip
    choose = None
    if criterion == "auto" and batches is not None and calibration is not None:
        choose = Automatic(batches, calibration, scoring, planning, level=heal, seed=seed, progress=clock.progress)
    cutter = Cutter(
        example_inputs=example_inputs,
        scoring={"criterion": criterion, **scoring},
        planning=planning,
        verify=verify,
        strict=strict,
        seed=seed,
        clock=clock,
        dataloader=batches,
        choose=choose,
    )
    healer = _Healer(module, calibration, heal, inputs_of, seed, clock)
    budget = plain_amounts({
        "filters": filters, "ratio": ratio, "max_macs": max_macs, "max_params": max_params,
        "max_activations": max_activations, "max_latency": max_latency,
    })  # fmt: skip
    if steps > 1 and (max_latency is not None or max_activations is not None):
        raise BudgetError("max_latency and max_activations are kept in one cut: give them with steps=1")
    if steps > 1:
        cut = _cut_in_steps(cutter, healer, module, budget, steps, schedule)
    else:
        cut = cutter.cut(module, budget, rewritten=not inplace or heal != "none")
        healer(cut.small, cut.plan)
    return _result(model, cut, healer, clock, inplace=inplace)


def _result(model: nn.Module, cut: Cut, healer: _Healer, clock: Clock, *, inplace: bool) -> Result:
    graph = cut.graph
    notes = (*cut.inexact, *_notes(graph, cut.plan))
    report = make_report(graph, cut.plan.kept(graph), cut.check, notes, cut.scores)
    small = _into(model, cut, healer.healed, clock) if inplace else cut.small
    assert small is not None
    size, seconds = tensor_bytes(small), dict(clock.seconds)
    report = replace(report, bytes_after=size, seconds=seconds, healing=tuple(healer.layers), timing=cut.timing)
    return Result(small, replace(cut.plan, fitted=None), report)


def _into(model: nn.Module, cut: Cut, healed: bool, clock: Clock) -> nn.Module:
    """Make `model` itself the cut one."""
    with clock("rewrite"):
        result = rewrite(model, cut.plan, inplace=True)
        if healed and cut.small is not None:
            numbers = named_tensors(cut.small)
            with torch.no_grad():
                for name, tensor in named_tensors(unwrap(result)).items():
                    tensor.copy_(numbers[name])
    return result


class _Healer:
    """Heals small models towards the first dense one, and remembers what came of it the last time."""

    def __init__(
        self, dense: nn.Module, batches: Iterable[Any] | None, level: str, inputs_of: Callable[[Any], Any] | None,
        seed: int, clock: Clock,
    ) -> None:  # fmt: skip
        self.layers: list[LayerHealing] = []
        self.healed = level != "none"
        self._dense, self._batches, self._level, self._inputs_of = dense, batches, level, inputs_of
        self._seed, self._clock = seed, clock

    def __call__(self, small: nn.Module | None, plan: Plan) -> None:
        if not self.healed or small is None or self._batches is None:
            return
        self.layers = []
        with self._clock("heal"):
            run_healing(
                self._dense, small, plan, self._batches, self._level,
                inputs_of=self._inputs_of, seed=self._seed, on_layer=self.layers.append, progress=self._clock.progress,
            )  # fmt: skip


def _cut_in_steps(
    cutter: Cutter, healer: _Healer, module: nn.Module, budget: Mapping[str, Any], steps: int, schedule: str | None
) -> Cut:
    """Cut, heal and score again, towards the budget; all cuts as one of the dense model."""
    dense = sizes(read_graph(module, cutter.example_inputs))
    goals = goals_of(budget, schedule, steps, dense)
    small, plan, checks, inexact = module, None, list[Check](), list[str]()
    for before, goal in zip([{}, *goals], goals, strict=False):
        left = remaining(goal, before, dense, sizes(read_graph(small, cutter.example_inputs)))
        if not left:
            continue
        cut = cutter.cut(small, left)
        assert cut.small is not None
        assert cut.plan.fitted is not None
        plan = cut.plan if plan is None else compose(module, plan, cut.plan.fitted, cutter.example_inputs)
        small = cut.small
        healer(small, plan)
        checks += [cut.check] if cut.check is not None else []
        inexact += cut.inexact
    if plan is None:
        raise BudgetError(f"{dict(budget)}: the model is within it as it is; ask for less to be left")
    fitted = fit(module, plan, cutter.example_inputs)
    whole = replace(plan, budget={**plan.budget, **budget, "steps": steps}, fitted=fitted)
    return Cut(whole, small, _all_of(checks), tuple(dict.fromkeys(inexact)))


def _all_of(checks: list[Check]) -> Check | None:
    """The checks of several cuts as one: the worst of each."""
    if not checks:
        return None
    status = "passed" if all(check.status == "passed" for check in checks) else "unproven"
    return Check(
        status, max(c.error for c in checks), max(c.own_error for c in checks), min(c.nodes for c in checks),
        tuple(dict.fromkeys(name for c in checks for name in c.unproven)), checks[-1].kept_statistics,
        next((c.stopped for c in checks if c.stopped), ""),
    )  # fmt: skip


def _check_early(criterion: str | Callable[[Request], Floats], dataloader: Iterable[Any] | None, steps: Any) -> None:
    """What would fail after minutes of work fails now."""
    name, chosen = find_criterion(criterion)
    if chosen.needs_data and dataloader is None:
        raise ScoreError(
            f"criterion {name!r} needs data: pass dataloader=..., or criterion='magnitude', which needs none"
        )
    if type(steps) is not int or steps < 1:
        raise BudgetError(f"steps={steps!r}: expected a positive whole number")


def _check_healing(
    level: str, dataloader: Iterable[Any] | None, calibration: Iterable[Any] | None, criterion: Any
) -> None:
    if level not in LEVELS:
        raise HealingError(f"heal={level!r}: expected one of {', '.join(LEVELS)}")
    if level != "none" and dataloader is None and calibration is None:
        raise HealingError(f"heal={level!r} needs inputs: pass dataloader=... or calibration=... (no labels needed)")
    if calibration is not None and level == "none" and criterion != "auto":
        raise HealingError("calibration is what is healed on: give heal=... or criterion='auto', or leave it out")


def _graph_module(model: nn.Module, example_inputs: Any, *, inplace: bool, units: Iterable[Any]) -> nn.Module:
    if inplace:
        raise ModelError("a graph is a new module: give as_graph=True or inplace=True, not both")
    if units:
        raise ModelError("a graph takes modules apart: give as_graph=True or units, not both")
    return to_graph(model, example_inputs)


def _notes(graph: ChannelGraph, plan: Plan) -> tuple[str, ...]:
    constants = [p for p in graph.pinned if p.reason.startswith("constant")]
    kept = [f"{p.layer} keeps {p.channels} of {p.of} channels: {p.reason}" for p in constants]
    held = plan.fitted.settings if plan.fitted is not None else {}
    kept += [f"the forward gives {reasons.closed(kind)}: what it holds stays whole" for kind in graph.trace.closed]
    return (*kept, *(f"{target} is now {value}" for target, value in held.items()))
