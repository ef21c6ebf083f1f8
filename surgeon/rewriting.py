"""Rewriting: a plan and a model make a smaller model, in one pass; every tensor is indexed once per axis."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from surgeon.channels import channel_graph
from surgeon.errors import ConstantError, ModelError, PlanError
from surgeon.planning import Plan
from surgeon.tracing import Inputs, Trace, named_tensors, outside_inference_mode, trace, unwrap
from surgeon.trial import Fit, Misfit, arrivals, find_fit, replace_tensors, with_tensors

__all__ = ["fit", "rewrite"]

_FORMATS: dict[int, tuple[torch.memory_format, ...]] = {4: (torch.channels_last,), 5: (torch.channels_last_3d,)}


def fit(model: nn.Module, plan: Plan, example_inputs: Any = None) -> Fit:
    """How `plan` fits `model`: for each tensor, which dense position stands at each place of the small one.

    Parameters
    ----------
    example_inputs:
        What to trace the model with; by default inputs of the shapes that the plan remembers.

    Raises
    ------
    PlanError
        If the plan names groups or channels that the model doesn't have.
    ConstantError
        If the model's forward doesn't follow the plan's widths; the message names the line.
    """
    module = unwrap(model)
    known = plan.fitted
    if known is not None and known.graph.trace.model is module and _still_holds(known, plan, module, example_inputs):
        return known
    if example_inputs is None:
        if plan.inputs is None:
            raise PlanError("the plan doesn't say what the model takes; pass example_inputs")
        device = next((p.device for p in module.parameters()), None)
        dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), None)
        example_inputs = Inputs.from_spec(plan.inputs).to(device, dtype)
        graph = channel_graph(_trace_by_plan(module, example_inputs))
    else:
        graph = channel_graph(trace(module, example_inputs))
    kept = plan.kept(graph)
    try:
        return find_fit(graph, kept)
    except Misfit as misfit:
        place = f"{misfit.node.meta.get('site')}"
        raise ConstantError(
            f"the forward doesn't follow the plan's widths at {place}: {misfit.why}; "
            "remove fewer channels there, or equally many of each part"
        ) from misfit


def _trace_by_plan(module: nn.Module, inputs: Inputs) -> Trace:
    """Trace with inputs made from the plan's own description; those may be wrong."""
    try:
        return trace(module, inputs)
    except ModelError:
        raise
    except Exception as problem:
        raise PlanError(
            f"the model doesn't run on inputs as the plan describes them: {problem}; pass example_inputs"
        ) from problem


def _still_holds(known: Fit, plan: Plan, module: nn.Module, example_inputs: Any) -> bool:
    """Whether a remembered fit is that of this very plan, on such inputs, and of the module as it is now."""
    if example_inputs is not None and Inputs.of(example_inputs).key != known.graph.trace.inputs.key:
        return False
    shapes = {name: tensor.shape for name, tensor in named_tensors(module).items()}
    same = all(shapes.get(n, t.shape) == t.shape for n, t in known.graph.trace.tensors.items())
    return same and bool((plan.kept(known.graph) == known.kept).all())


@outside_inference_mode
def rewrite(model: nn.Module, plan: Plan, example_inputs: Any = None, *, inplace: bool = False) -> nn.Module:
    """The model without the plan's channels: the same class, state-dict names, dtype, device, mode and ties.

    Parameters
    ----------
    model, plan:
        The dense model, and what to take out of it; a plan that was made on another copy fits, too.
    example_inputs:
        What to trace the model with; by default inputs of the shapes that the plan remembers.
    inplace:
        Change `model` itself and give it back; else it is left as it is.

    Raises
    ------
    PlanError
        If the plan names groups or channels that the model doesn't have.
    ConstantError
        If the model's forward doesn't follow the plan's widths; the message names the line.
    """
    fitted = fit(model, plan, example_inputs)
    module = unwrap(model)
    now = named_tensors(module)
    tensors = {name: small_tensor(fitted, name, now[name]) for name in fitted.cut}
    found = {**arrivals(fitted.graph, fitted.kept), **fitted.settings}
    if inplace:
        replace_tensors(module, tensors, found)
        return model
    return with_tensors(module, tensors, found)


def small_tensor(fitted: Fit, name: str, dense: Tensor) -> Tensor:
    """The small tensor called `name`, in the memory format of the dense one."""
    small = fitted.gather(name, dense.detach())
    for order in _FORMATS.get(dense.ndim, ()):
        if dense.is_contiguous(memory_format=order) and not dense.is_contiguous():
            return small.contiguous(memory_format=order)
    return small.contiguous()
