"""FSDP2: a model's weights, gradients and optimizer spread over the processes while it trains.

The model that the caller has stays as it is, on its own device. What trains is a copy without numbers, whose parameters
``torch.distributed.fsdp.fully_shard`` turns into shards; each process then takes its rows from the whole model. After
every epoch the numbers are gathered one tensor at a time, into the whole model or the state that is saved.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.errors import TuningError
from surgeon.tracing import named_tensors
from surgeon.trial import with_tensors
from surgeon.tuning.averaging import Average
from surgeon.tuning.optimizers import names_of
from surgeon.tuning.state import Run

__all__ = ["Spread", "is_sharded", "reshard"]

#: Share of the parameters from which a block is gathered by itself, not with the rest of the model.
_WORTH = 0.01


def is_sharded(asked: bool | None, mixed_precision: str | None, penalty: Any, processes: int) -> bool:
    """Whether to spread the model: as asked, else as ``accelerate launch --use_fsdp`` says.

    Raises
    ------
    TuningError
        If it is asked for together with what can't be done so.
    """
    launched = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if not (launched if asked is None else asked) or processes == 1:
        return False
    if asked is None and os.environ.get("FSDP_VERSION", "1") != "2":
        raise TuningError("accelerate was told to use FSDP 1: give accelerate launch --fsdp_version 2")
    if os.environ.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true":
        raise TuningError("shards stay on their device: leave --fsdp_offload_params out")
    if penalty is not None:
        raise TuningError("a penalty looks at whole weights, of which each process has a part: leave sharded out")
    if mixed_precision == "fp16":
        raise TuningError("mixed_precision='fp16' scales the gradients of whole weights: use 'bf16' with sharded")
    return True


class Spread:
    """A run whose model is spread over the processes.

    Parameters
    ----------
    whole:
        The run as one process would have it; its state is read already.
    device:
        Where the shards are.

    Attributes
    ----------
    run:
        The run with the sharded model, and an optimizer of the same class and state that holds the shards.
    """

    def __init__(self, whole: Run, device: torch.device) -> None:
        self.whole = whole
        replica = _sharded(whole.model, device)
        _fill(replica, whole.model, device)
        average = None if whole.average is None else self._average(whole.average, replica)
        self.run = dataclasses.replace(
            whole, model=replica, optimizer=self._optimizer(replica), average=average,
            best=None if whole.best is None else _parts(whole.best, named_tensors(replica)),
        )  # fmt: skip

    def gather(self, *, keep: bool = True) -> Run:
        """The whole run, with the numbers of the shards; every process must call it, and those that keep it have it."""
        run, whole = self.run, self.whole
        reshard(run.model)
        model = _gathered(named_tensors(run.model), keep)
        average = _gathered(run.average.tensors, keep) if run.average is not None else {}
        best = None if run.best is None else _gathered(run.best, keep)
        states = self._states(keep)
        whole.best_epoch = run.best_epoch
        if keep:
            self._take(model, average, best, states)
        return whole

    def _take(
        self, model: Mapping[str, Tensor], average: dict[str, Tensor], best: dict[str, Tensor] | None,
        states: Mapping[str, dict[str, Any]],
    ) -> None:  # fmt: skip
        whole = self.whole
        with torch.no_grad():
            for name, tensor in named_tensors(whole.model).items():
                tensor.copy_(model[name])
        if whole.average is not None and self.run.average is not None:
            whole.average.tensors, whole.average.updates = average, self.run.average.updates
        whole.best = best
        parameters = {name: parameter for parameter, name in names_of(whole.optimizer, whole.model).items()}
        whole.optimizer.state.clear()
        for name, state in states.items():
            whole.optimizer.state[parameters[name]] = state
        for own, other in zip(whole.optimizer.param_groups, self.run.optimizer.param_groups, strict=True):
            own.update({key: value for key, value in other.items() if key != "params"})

    def _states(self, keep: bool) -> dict[str, dict[str, Any]]:
        names = names_of(self.run.optimizer, self.run.model)
        return {names[p]: _gathered(state, keep) for p, state in self.run.optimizer.state.items()}

    def _optimizer(self, replica: nn.Module) -> torch.optim.Optimizer:
        """A copy that holds the replica's parameters, with the state that belongs to their shards."""
        shards = dict(replica.named_parameters())
        names = names_of(self.whole.optimizer, self.whole.model)
        memo: dict[int, Any] = {id(parameter): shards[name] for parameter, name in names.items()}
        states, self.whole.optimizer.state = self.whole.optimizer.state, defaultdict(dict)
        try:
            made = copy.deepcopy(self.whole.optimizer, memo)
        finally:
            self.whole.optimizer.state = states
        for parameter, state in states.items():
            shard = shards[names[parameter]]
            made.state[shard] = {key: _part(v, shard) if _is_like(v, parameter) else v for key, v in state.items()}
        return made

    @staticmethod
    def _average(whole: Average, replica: nn.Module) -> Average:
        made = Average(replica, whole.decay)
        made.tensors, made.updates = _parts(whole.tensors, named_tensors(replica)), whole.updates
        return made


def reshard(model: nn.Module) -> None:
    """Let go of what a forward without a backward has gathered; the parameters are shards again."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _sharded(model: nn.Module, device: torch.device) -> nn.Module:
    """A copy without numbers, whose parameters are shards."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    empty = {
        name: torch.empty_like(tensor, device="meta", memory_format=torch.contiguous_format)
        for name, tensor in named_tensors(model).items()
    }
    replica = with_tensors(model, empty, {})
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    try:
        for module in (*_blocks(replica), replica):
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
    except (ValueError, AssertionError, NotImplementedError) as problem:
        raise TuningError(f"the model can't be spread over processes: {problem}; leave sharded out") from problem
    for module in replica.modules():
        if isinstance(module, FSDPModule) and device.type == "cpu":  # gloo has no mean
            module.set_force_sum_reduction_for_comms(enable=True)
    return replica


def _fill(replica: nn.Module, model: nn.Module, device: torch.device) -> None:
    """Put parameters and buffers with the model's numbers in place of those without; what is tied stays so."""
    numbers = named_tensors(model)
    new: dict[int, Any] = {}
    for name, old in named_tensors(replica).items():
        part = _part(numbers[name].to(device, copy=True), old)
        new[id(old)] = nn.Parameter(part, old.requires_grad) if isinstance(old, nn.Parameter) else part
    for module in replica.modules():
        for held in (module._parameters, module._buffers):
            held.update({name: new[id(old)] for name, old in held.items() if old is not None})


def _blocks(model: nn.Module) -> list[nn.Module]:
    """Items of lists and sequences that are worth being gathered by themselves; inner ones first.

    None that shares a parameter with the rest of the model: that one must be gathered with both.
    """
    owners: defaultdict[int, int] = defaultdict(int)
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] += 1
    least = _WORTH * sum(parameter.numel() for parameter in model.parameters())
    found = [
        item
        for holder in model.modules() if isinstance(holder, nn.ModuleList | nn.Sequential)
        for item in holder
        if sum(p.numel() for p in item.parameters()) > least and all(_within(item, owners))
    ]  # fmt: skip
    return list(reversed(dict.fromkeys(found)))


def _within(module: nn.Module, owners: Mapping[int, int]) -> Iterable[bool]:
    """Of each of its parameters, whether no module outside owns it too."""
    inside: defaultdict[int, int] = defaultdict(int)
    for part in module.modules():
        for parameter in part.parameters(recurse=False):
            inside[id(parameter)] += 1
    return (owners[key] == count for key, count in inside.items())


def _parts(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: _part(tensor, like[name]) for name, tensor in tensors.items()}


def _part(tensor: Tensor, like: Tensor) -> Tensor:
    """The part of a tensor that belongs to this process, as `like` is spread."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return tensor.detach() if like.is_meta else tensor.detach().to(like.device)
    whole = tensor.detach().to(like.device_mesh.device_type).contiguous()
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def _is_like(value: Any, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape and bool(value.ndim)


def _gathered(values: Mapping[str, Any], keep: bool) -> dict[str, Any]:
    """Whole tensors on the CPU; where they aren't kept, none is left after its turn."""
    from torch.distributed.tensor import DTensor

    found: dict[str, Any] = {}
    for name, value in values.items():
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        if keep:
            found[name] = whole.detach().cpu().clone() if isinstance(whole, Tensor) else whole
    return found
