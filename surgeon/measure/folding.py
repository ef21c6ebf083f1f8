"""Batch norms folded into the convolutions in front of them, as deployment does it."""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from surgeon.errors import ModelError
from surgeon.measure.backends import difference, eager
from surgeon.tracing import Inputs, Trace, in_mode, operator_name, outside_inference_mode, trace

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
#: Largest relative difference that folding may make, in each number type.
_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 1e-1, torch.float16: 2e-2}


@outside_inference_mode
def fold_batch_norms(model: nn.Module, example_inputs: Any) -> nn.Module:
    """A copy in eval mode whose batch norms are part of the convolution (or linear layer) in front of them.

    A pair is folded only if *every* call of the one feeds *every* call of the other and nothing else reads what is in
    between; so a convolution that is called twice, with a norm of its own behind each call, stays as it is. The copy is
    run beside the model on the inputs.

    Raises
    ------
    ModelError
        If the copy computes something else.
    """
    inputs = Inputs.of(example_inputs)
    pairs = foldable(trace(model, inputs))
    folded = copy.deepcopy(model).eval()
    for layer, norm in pairs:
        _fold(folded, layer, norm)
    _compare(model, folded, inputs, [norm for _, norm in pairs])
    return folded


def foldable(recording: Trace) -> list[tuple[str, str]]:
    """Names of the layers and the batch norms that may be folded into them."""
    modules = dict(recording.model.named_modules())
    owners = _owners(recording.model)
    fed: dict[str, set[str | None]] = defaultdict(set)  # norm -> layers in front of its calls
    read: dict[str, set[str | None]] = defaultdict(set)  # layer -> norms behind its calls
    for node in recording.calls:
        name = node.meta["site"].path
        module = modules.get(name)
        if operator_name(node) == "native_batch_norm":
            fed[name].add(_producer(node.args[0], modules))
        if type(module) in (*_CONVOLUTIONS, nn.Linear) and _makes_output(node):
            read[name].add(_reader(node, modules))
    return [
        (layer, norm)
        for norm, (layer, *others) in ((n, tuple(found)) for n, found in fed.items())
        if layer is not None and not others and read[layer] == {norm} and _alone(recording, owners, layer, norm)
    ]


def _alone(recording: Trace, owners: dict[int, int], layer: str, norm: str) -> bool:
    """Whether both are plain modules whose tensors nobody else holds or reads."""
    model = recording.model
    if type(model.get_submodule(norm)) not in _NORMS or model.get_submodule(norm).running_mean is None:
        return False
    for name in (layer, norm):
        part = model.get_submodule(name)
        tensors = {f"{name}.{key}": t for key, t in (*part.named_parameters(), *part.named_buffers())}
        readers = {
            user.meta["site"].path
            for node in recording.graph.nodes
            if node.op == "get_attr" and node.target in tensors
            for user in node.users
        }
        if readers != {name} or any(owners[id(t)] > 1 for t in tensors.values()):
            return False
    return True


def _owners(model: nn.Module) -> dict[int, int]:
    """How many names each tensor has; of a module with several names all its tensors have them."""
    counts: dict[int, int] = defaultdict(int)
    for _, tensor in (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)):
        counts[id(tensor)] += 1
    return counts


_VIEWS = frozenset({"view", "_unsafe_view", "alias"})


def _producer(value: Any, modules: dict[str, nn.Module]) -> str | None:
    """The layer that made this value, if it is one."""
    while isinstance(value, fx.Node) and value.op == "call_function" and operator_name(value) in _VIEWS:
        value = value.args[0]
    if not isinstance(value, fx.Node) or "site" not in value.meta or not _makes_output(value):
        return None
    name: str = value.meta["site"].path
    return name if type(modules.get(name)) in (*_CONVOLUTIONS, nn.Linear) else None


def _makes_output(node: fx.Node) -> bool:
    return node.op == "call_function" and operator_name(node) in {"convolution", "addmm", "mm", "linear"}


def _reader(node: fx.Node, modules: dict[str, nn.Module]) -> str | None:
    """The batch norm that alone reads this value."""
    users = list(node.users)
    while len(users) == 1 and users[0].op == "call_function" and operator_name(users[0]) in _VIEWS:
        users = list(users[0].users)
    if len(users) != 1 or users[0].op != "call_function" or operator_name(users[0]) != "native_batch_norm":
        return None
    name: str = users[0].meta["site"].path
    return name if type(modules.get(name)) in _NORMS else None


def _fold(model: nn.Module, layer: str, norm: str) -> None:
    target: Any = model.get_submodule(layer)
    source: Any = model.get_submodule(norm)
    fuse: Any = fuse_linear_bn_weights if isinstance(target, nn.Linear) else fuse_conv_bn_weights
    with torch.no_grad():
        weight, bias = fuse(
            target.weight, target.bias, source.running_mean, source.running_var, source.eps, source.weight, source.bias
        )
    target.weight, target.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
    parent, _, name = norm.rpartition(".")
    setattr(model.get_submodule(parent), name, nn.Identity())


def _compare(model: nn.Module, folded: nn.Module, inputs: Inputs, norms: list[str]) -> None:
    dtypes = [t.dtype for t in inputs.leaves() if isinstance(t, Tensor) and t.is_floating_point()]
    allowed = max((_TOLERANCES.get(dtype, 1e-3) for dtype in dtypes), default=1e-3)
    with in_mode(model, False), torch.no_grad():
        found = difference(eager(model, inputs)(), eager(folded, inputs)())
    if not found <= allowed:
        raise ModelError(
            f"folding batch norms changes what {type(model).__name__} computes by {found:.1e} (relative; allowed "
            f"{allowed:.0e}); folded were {', '.join(norms[:4]) or 'none'}...; measure without fold_bn"
        )
