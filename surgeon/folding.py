"""Folding: batch norms that become part of the convolution or linear layer in front of them.

What stands in front of what is read off a recording of the forward, not guessed from names or the order of the modules.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd

from surgeon.agreement import distance, full_precision
from surgeon.errors import ModelError
from surgeon.exclusive import one_at_a_time
from surgeon.tracing import Inputs, Trace, check_model, copied, operator_name, outside_inference_mode, results_of, trace

__all__ = ["fold_batch_norms"]

#: Layers and norms whose forward is known: of these very classes, for a subclass may do more than they do.
_LAYERS = frozenset(
    {nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear}
)
_NORMS = frozenset({nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm})
_PRODUCTS = ("convolution", "addmm", "mm")
_BATCH_NORMS = (
    "native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "cudnn_batch_norm",
    "miopen_batch_norm",
)  # fmt: skip
_VIEWS = frozenset({"view", "_unsafe_view"})


@outside_inference_mode
def fold_batch_norms(model: nn.Module, example_inputs: Any) -> nn.Module:
    """A copy of `model` for eval mode, in which convolutions and linear layers do the work of the batch norms behind.

    A norm is folded where each of its calls reads the output of such a layer that nobody else reads, and the layer
    feeds no other norm; an ``nn.Identity`` stands in its place then. A layer called twice is folded if the same norm is
    behind it both times. Layers and norms with hooks, with weights that are computed or read elsewhere as well, and
    norms that use the batch's own statistics stay as they are.

    Parameters
    ----------
    model:
        Any eager module; it stays as it is. What data-dependent branches of its forward would do on other inputs is not
        seen.
    example_inputs:
        What its forward takes; the two models are compared on it.

    Returns
    -------
    nn.Module
        The copy, in eval mode. Trained on, it would be another model: the norms are gone.

    Raises
    ------
    ModelError
        If the copy computes something else, or can't run (a forward that reads its norms' attributes).
    """
    module, inputs = check_model(model), Inputs.of(example_inputs)
    folds = _folds(trace(module, inputs))
    folded = copied(module, {})
    for part in folded.modules():
        part.training = False
    norms = {name: folded.get_submodule(name) for name in folds}
    for name, layers in folds.items():
        for layer in layers:
            _absorb(folded.get_submodule(layer), norms[name])
    _drop(folded, norms.values())
    if folds:
        _compare(module, folded, inputs)
    return folded


def _folds(recording: Trace) -> dict[str, tuple[str, ...]]:
    """The norms that can go, each with the layers that take it over."""
    layers = {out: path for path, nodes in _calls(recording, _PRODUCTS, _LAYERS).items() for out in map(_output, nodes)}
    norms = _calls(recording, _BATCH_NORMS, _NORMS)
    by_call = {node: path for path, nodes in norms.items() for node in nodes}
    behind: dict[str, set[str | None]] = defaultdict(set)  # the norms that read each layer; None: something else does
    for out, path in layers.items():
        readers = list(out.users) if out is not None else []
        behind[path] |= {by_call.get(user) if user.args[0] is out else None for user in readers} or {None}
    found: dict[str, tuple[str, ...]] = {}
    for path, nodes in norms.items():
        fronts = [layers.get(node.args[0], "") if isinstance(node.args[0], fx.Node) else "" for node in nodes]
        if all(behind.get(front) == {path} for front in fronts):
            found[path] = tuple(dict.fromkeys(fronts))
    return found


def _calls(recording: Trace, operators: Iterable[str], classes: frozenset[type]) -> dict[str, list[fx.Node]]:
    """The calls of layers of these classes whose tensors go into them as they are, and nowhere else."""
    modules = dict(recording.model.named_modules())
    found: dict[str, list[fx.Node]] = defaultdict(list)
    for node in recording.calls:
        path = node.meta["site"].path
        if operator_name(node) in operators and type(modules.get(path)) in classes and not node.meta["extra"]:
            found[path].append(node)
    return {
        path: nodes for path, nodes in found.items() if _is_plain(modules[path]) and _keep_to_themselves(path, nodes)
    }


def _is_plain(module: nn.Module) -> bool:
    """Whether it is in no need of being seen: no hook, and statistics of its own if it is a norm."""
    hooked = module._forward_hooks or module._forward_pre_hooks
    return not hooked and not (isinstance(module, _BatchNorm) and module.running_mean is None)


def _keep_to_themselves(path: str, nodes: list[fx.Node]) -> bool:
    held = {tensor for node in nodes for argument in node.args if (tensor := _held(argument)) is not None}
    own = {f"{path}.{name}" for name in ("weight", "bias", "running_mean", "running_var")}
    return bool(held) and all(str(t.target) in own and _readers(t) <= set(nodes) for t in held)


def _held(argument: Any) -> fx.Node | None:
    """The tensor of the model's that an argument is; a linear layer's weight comes transposed."""
    if isinstance(argument, fx.Node) and operator_name(argument) == "t":
        argument = argument.args[0]
    return argument if isinstance(argument, fx.Node) and argument.op == "get_attr" else None


def _readers(tensor: fx.Node) -> set[fx.Node]:
    """Who reads a tensor in eval mode."""
    users = [user for user in tensor.users if not user.meta.get("extra")]
    return {reader for user in users for reader in (user.users if operator_name(user) == "t" else (user,))}


def _output(node: fx.Node) -> fx.Node | None:
    """Where a layer's output stands; None if its channels are not the second axis, as a norm has them."""
    if operator_name(node) == "convolution":
        return node
    while len(node.users) == 1:
        (user,) = node.users
        if operator_name(user) not in _VIEWS or user.meta["site"].path != node.meta["site"].path:
            break
        node = user
    return node if len(node.meta["shape"]) == 2 else None  # (N, channels)


def _absorb(layer: nn.Module, norm: nn.Module) -> None:
    """Scale the layer's filters and shift its bias as the norm would do in eval mode."""
    assert isinstance(norm, _BatchNorm)
    weight: Any = layer.weight
    bias, gamma, beta = layer._parameters["bias"], norm._parameters["weight"], norm._parameters["bias"]
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt() * _double(gamma, 1.0)
    shift = (_double(bias, 0.0) - norm.running_mean.double()) * scale + _double(beta, 0.0)
    scaled = torch.empty_like(weight).copy_(weight.detach().double() * _per_filter(layer, scale))
    layer.weight = nn.Parameter(scaled, weight.requires_grad)
    layer.bias = nn.Parameter(shift.to(weight.dtype), weight.requires_grad)


def _double(vector: Tensor | None, default: float) -> Tensor | float:
    return default if vector is None else vector.detach().double()


def _per_filter(layer: nn.Module, scale: Tensor) -> Tensor:
    """`scale` in the shape in which it multiplies the layer's weight, which a transposed one holds group by group."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if not isinstance(layer, _ConvTransposeNd):
        return scale.view(-1, *[1] * (weight.ndim - 1))
    rows = scale.view(layer.groups, 1, -1).expand(-1, layer.in_channels // layer.groups, -1)
    return rows.reshape(layer.in_channels, -1, *[1] * (weight.ndim - 2))


def _drop(model: nn.Module, norms: Iterable[nn.Module]) -> None:
    """Put an identity in each place where one of these norms is."""
    gone = {id(norm) for norm in norms}
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if id(child) in gone:
                parent._modules[name] = nn.Identity().eval()


def _compare(model: nn.Module, folded: nn.Module, inputs: Inputs) -> None:
    try:
        with full_precision():
            expected, found = _run(model, inputs), _run(folded, inputs)
    except Exception as problem:  # the forward is the user's code
        raise ModelError(
            f"{type(model).__name__} doesn't run without its batch norms: {type(problem).__name__}: {problem}; go on "
            "without folding them"
        ) from problem
    error = distance(expected, found)
    epsilon = max((torch.finfo(p.dtype).eps for p in model.parameters() if p.is_floating_point()), default=0.0)
    if math.isnan(error):
        raise ModelError(
            f"{type(model).__name__}: its outputs are all zero, or not finite, on these inputs: nothing tells whether "
            "it computes the same with its batch norms folded; go on without folding them"
        )
    if error > epsilon**0.5:  # half of the digits
        raise ModelError(
            f"{type(model).__name__} computes something else with its batch norms folded (relative error {error:.1e}); "
            "go on without folding them"
        )


@one_at_a_time
def _run(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return results_of(model, inputs)
