"""Optimizers: making them, and taking one along through a cut."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.errors import TuningError
from surgeon.planning import Plan
from surgeon.rewriting import fit
from surgeon.tracing import unwrap
from surgeon.trial import Fit

__all__ = ["FROM_SCRATCH", "OptimizerLike", "make_optimizer", "names_of", "rewrite_optimizer"]

#: ``"sgd"``, ``"adamw"``, a function of the parameters, or an optimizer that holds the model's parameters.
OptimizerLike = str | torch.optim.Optimizer | Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]

#: Learning rates where none is given, and those for new weights where they are others.
_RATES = {"sgd": 0.01, "adamw": 1e-3}
FROM_SCRATCH = {"sgd": 0.1}

#: Moments of the gradient, and the power of the gradient's scale that each grows with.
_POWERS = {"momentum_buffer": 1, "exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2, "square_avg": 2, "grad_avg": 1}


def make_optimizer(
    chosen: OptimizerLike, model: nn.Module, *, lr: float | None, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """The optimizer for the model's trainable parameters; one that exists is taken as it is.

    Raises
    ------
    TuningError
        If the name is unknown, nothing is trainable, or an existing optimizer holds other parameters.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise TuningError("no parameter of the model requires a gradient; call model.requires_grad_() first")
    if isinstance(chosen, torch.optim.Optimizer):
        names_of(chosen, model)
        return chosen
    if callable(chosen):
        made = chosen(parameters)
        names_of(made, model)
        return made
    if chosen not in _RATES:
        raise TuningError(f"optimizer={chosen!r}: expected {', '.join(map(repr, _RATES))}, a function or an optimizer")
    rate = _RATES[chosen] if lr is None else lr
    if chosen == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=momentum, weight_decay=weight_decay)
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=weight_decay)


def names_of(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[Tensor, str]:
    """The name in the model of each parameter that the optimizer holds.

    Raises
    ------
    TuningError
        If it holds a tensor that is no parameter of the model.
    """
    known = {parameter: name for name, parameter in model.named_parameters()}
    held: list[Tensor] = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    strangers = [p for p in held if p not in known]
    if strangers:
        raise TuningError(
            f"the optimizer holds {len(strangers)} of {len(held)} tensors that are no parameters of this model (one of "
            f"shape {tuple(strangers[0].shape)}): it would train what nothing reads; after a cut use "
            "surgeon.rewrite_optimizer"
        )
    return {parameter: known[parameter] for parameter in held}  # type: ignore[index]  # no stranger is left


def rewrite_optimizer(
    optimizer: torch.optim.Optimizer, cut: Fit | Plan, dense: nn.Module, small: nn.Module, example_inputs: Any = None
) -> torch.optim.Optimizer:
    """The optimizer of `dense`, for `small`: momentum buffers and moments are indexed as the weights were.

    An optimizer that is kept through a cut goes on training the dense parameters, which nothing reads any more. A
    learning-rate scheduler likewise goes on setting the rates of the optimizer that it was made with: make one anew for
    the one that comes back, load the old one's state into it, and copy each group's ``lr``.

    Parameters
    ----------
    optimizer:
        Holds parameters of `dense`; left as it is.
    cut:
        The plan, or how it fits (:func:`surgeon.rewriting.fit`), by which `small` was made from `dense`.
    dense, small:
        Both models.
    example_inputs:
        For a plan that can't describe what the dense model takes.

    Returns
    -------
    torch.optim.Optimizer
        Of the same class and options, over the small parameters. A state of the weight's shape is indexed along with
        it, and divided where the cut multiplied the weight (by f: the gradient is 1/f of what it was); anything else,
        such as the number of steps, is copied.

    Raises
    ------
    TuningError
        If the optimizer holds other parameters than the dense model's, or `small` isn't what the plan makes.
    PlanError, ConstantError
        If the plan doesn't fit the dense model.
    """
    dense, small = unwrap(dense), unwrap(small)
    names = names_of(optimizer, dense)
    fitted = cut if isinstance(cut, Fit) else fit(dense, cut, example_inputs)
    ours = dict(small.named_parameters())
    result = _clone(optimizer)
    for group in optimizer.param_groups:
        parameters = [_match(names[p], p, ours, fitted) for p in group["params"]]
        result.param_groups.append({**copy.deepcopy(_options(group)), "params": parameters})
        for old, new in zip(group["params"], parameters, strict=True):
            if old in optimizer.state:
                result.state[new] = _carried(optimizer.state[old], names[old], old, new, fitted)
    return result


def _clone(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The same optimizer without parameters; a constructor may not take the options that it keeps."""
    result = copy.copy(optimizer)
    result.__dict__.pop("step", None)  # a learning rate scheduler's wrapper, bound to the old one
    result.defaults = dict(optimizer.defaults)
    result.state, result.param_groups = defaultdict(dict), []
    for name, value in vars(result).items():
        if type(value) is OrderedDict:  # hooks
            vars(result)[name] = value.copy()
    return result


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}


def _match(name: str, dense: Tensor, ours: Mapping[str, nn.Parameter], fitted: Fit) -> nn.Parameter:
    wanted = fitted.gather(name, dense.detach()).shape
    if name not in ours or ours[name].shape != wanted:
        came = tuple(ours[name].shape) if name in ours else "missing"
        raise TuningError(f"{name} of the small model is {came}; the plan makes {tuple(wanted)} of it: pass its plan")
    return ours[name]


def _carried(state: Mapping[str, Any], name: str, old: Tensor, new: Tensor, fitted: Fit) -> dict[str, Any]:
    # Fit.gather multiplies by the folds' factors: what it makes of ones are those factors, place by place.
    factors = fitted.gather(name, torch.ones_like(old))
    result: dict[str, Any] = {}
    for key, value in state.items():
        if isinstance(value, Tensor) and value.shape == old.shape:
            small = fitted.gather(name, value.detach().to(factors.dtype) if fitted.folds else value.detach())
            if fitted.folds:
                small = small / factors ** (1 + _POWERS.get(key, 0))
            result[key] = torch.empty_like(new, dtype=value.dtype).copy_(small)
        else:
            result[key] = copy.deepcopy(value)
    return result
