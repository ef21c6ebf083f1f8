"""The state of a training run in one safetensors file: replaced whole after every epoch, or not at all; no pickle."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.checkpoint import write_tensors
from surgeon.checkpoint.header import opened
from surgeon.errors import CheckpointError
from surgeon.files import write_beside
from surgeon.jsonfiles import as_read, blamed, changed, shaped
from surgeon.jsontext import dump_json, read_json
from surgeon.tracing import named_tensors
from surgeon.tuning.averaging import Average, copy_into
from surgeon.tuning.optimizers import names_of
from surgeon.tuning.recipe import Epoch, check_history

__all__ = ["FILE", "Run", "read_state", "write_state"]

#: Name of the file in the folder, and version of its format.
FILE, FORMAT = "training.safetensors", 2
_KEY = "surgeon_training"
_ADVICE = "give another folder"
#: Bytes that the header may take in memory: a row for each epoch, some words for each parameter.
_ROOM = 2**28


@dataclass
class Run:
    """Everything that a run carries from one epoch to the next. Random numbers follow from seed and epoch.

    Attributes
    ----------
    asked:
        Options that an interrupted run must agree in to be taken up again.
    model, optimizer, average, scaler, penalty:
        The parts with a state; None where there is none.
    history, best:
        Rows of the finished epochs; the best weights (:func:`~surgeon.tuning.averaging.snapshot`) and their epoch.
    places:
        First epoch, and what :func:`~surgeon.tuning.hardware.surroundings` said from there on.
    """

    asked: Mapping[str, Any]
    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: Average | None = None
    scaler: Any = None
    penalty: Any = None
    history: list[Epoch] = field(default_factory=list)
    best: dict[str, Tensor] | None = None
    best_epoch: int = 0
    places: list[tuple[int, dict[str, Any]]] = field(default_factory=list)

    def goes_on(self, place: Mapping[str, Any]) -> None:
        """Remember where the epochs to come are computed, if it is elsewhere than those before."""
        if not self.places or self.places[-1][1] != place:
            self.places.append((len(self.history) + 1, dict(place)))

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence for each time that the run went on elsewhere."""
        return tuple(
            f"from epoch {epoch} on it had {_changes(before, now)}: the same run, but not to the last bit"
            for (_, before), (epoch, now) in itertools.pairwise(self.places)
        )


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    changed = [name for name in now if before.get(name) != now[name]]
    return ", ".join(f"{name} {now[name]} instead of {before.get(name)}" for name in changed)


def write_state(folder: str | os.PathLike[str], run: Run) -> None:
    """Save the run into `folder`; the file is written beside and renamed.

    Raises
    ------
    OSError
        If it can't be written.
    """
    moments, plain = _optimizer_state(run)
    tensors = {f"model/{name}": tensor for name, tensor in named_tensors(run.model).items()}
    tensors |= moments
    tensors |= {f"average/{name}": t for name, t in (run.average.tensors if run.average else {}).items()}
    tensors |= {f"best/{name}": t for name, t in (run.best or {}).items()}
    tensors |= {f"penalty/{name}": t for name, t in _penalty_state(run.penalty).items()}
    header = {
        "format": FORMAT,
        "asked": run.asked,
        "history": [vars(row) for row in run.history],
        "best_epoch": run.best_epoch,
        "places": run.places,
        "optimizer": plain,
        "updates": run.average.updates if run.average else 0,
        "scaler": run.scaler.state_dict() if run.scaler is not None else {},
    }
    # Clones: views of one storage (an LSTM's flat weights) can't be stored as they are.
    stored = {name: t.detach().clone(memory_format=torch.contiguous_format).cpu() for name, t in tensors.items()}
    with write_beside(Path(folder) / FILE) as temporary:
        write_tensors(stored, temporary, {_KEY: dump_json(header, exact=True)})


def read_state(folder: str | os.PathLike[str], run: Run) -> bool:
    """Take up the run that `folder` holds.

    Returns
    -------
    bool
        Whether there is one.

    Raises
    ------
    CheckpointError
        If the file is damaged, or belongs to a run with another model or other options.
    OSError
        If the folder can't be made or read.
    """
    path = Path(folder) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        return False
    with opened(path) as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    header = _header(path, metadata)
    _same_run(path, header.asked, run.asked)
    try:
        _take(run, header, tensors)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError, OverflowError) as problem:
        raise CheckpointError(
            f"{path}: doesn't fit this model and optimizer ({problem}); resume what it holds, or {_ADVICE}"
        ) from problem
    return True


@dataclass(frozen=True)
class _Header:
    """What the file holds beside tensors."""

    format: int
    asked: dict[str, Any]
    history: tuple[Epoch, ...]
    best_epoch: int
    places: tuple[tuple[int, dict[str, Any]], ...]
    optimizer: dict[str, dict[str, Any]]
    updates: int
    scaler: dict[str, float | int]

    def __post_init__(self) -> None:
        check_history(self.history, self.best_epoch)


def _header(path: Path, metadata: Mapping[str, str]) -> _Header:
    with blamed(path, _ADVICE):
        fields = read_json(metadata[_KEY], _ROOM, exact=True) if _KEY in metadata else None
        if not isinstance(fields, dict) or fields.get("format") != FORMAT:
            raise CheckpointError(f"{path}: no training state of format {FORMAT}; {_ADVICE}")
        header: _Header = shaped(_Header, fields)
    return header


def _same_run(path: Path, saved: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    now = as_read(asked)
    for name in changed(saved, now):
        raise CheckpointError(
            f"{path}: its run has {name}={saved.get(name)!r}, this one {now.get(name)!r}; "
            f"resume with the same options, or {_ADVICE}"
        )


def _take(run: Run, header: _Header, tensors: Mapping[str, Tensor]) -> None:
    """Fill every part; all tensors are checked against the model before the first is copied."""
    parts = _by_part(tensors)
    device = next((p.device for p in run.model.parameters()), torch.device("cpu"))
    kinds = {name: (tensor.shape, tensor.dtype) for name, tensor in named_tensors(run.model).items()}
    for part in {"model", "average", "best"} & parts.keys() | {"model"}:
        if {name: (t.shape, t.dtype) for name, t in parts[part].items()} != kinds:
            raise ValueError("other tensors, or of other shapes or types")
    if header.best_epoch and _is_judged(header.history) and "best" not in parts:
        raise ValueError(f"the weights of epoch {header.best_epoch}, the best one, are not there")
    _take_optimizer(run, header.optimizer, parts.get("optimizer", {}))
    copy_into(run.model, parts["model"])
    if run.average is not None:
        run.average.tensors = {name: t.to(device) for name, t in parts["average"].items()}
        run.average.updates = header.updates
    if "penalty" in parts:
        run.penalty.load_state_dict(parts["penalty"])
    if run.scaler is not None:
        run.scaler.load_state_dict(header.scaler)
    run.best = parts.get("best")
    run.history, run.best_epoch = list(header.history), header.best_epoch
    run.places = list(header.places)


def _is_judged(history: tuple[Epoch, ...]) -> bool:
    return any(row.val_loss is not None or row.val_metric is not None for row in history)


def _by_part(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        parts.setdefault(part, {})[rest] = tensor
    return parts


def _penalty_state(penalty: Any) -> Mapping[str, Tensor]:
    found: Mapping[str, Tensor] = penalty.state_dict() if hasattr(penalty, "state_dict") else {}
    return found


def _optimizer_state(run: Run) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """Tensors under ``optimizer/PARAMETER/KEY``; numbers and None by parameter and key."""
    names = names_of(run.optimizer, run.model)
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for parameter, state in run.optimizer.state.items():
        name = names[parameter]
        plain[name] = {key: value for key, value in state.items() if not isinstance(value, Tensor)}
        tensors |= {f"optimizer/{name}/{key}": v for key, v in state.items() if isinstance(v, Tensor)}
    return tensors, plain


def _take_optimizer(run: Run, plain: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    parameters = {name: parameter for parameter, name in names_of(run.optimizer, run.model).items()}
    states: dict[str, dict[str, Any]] = {name: dict(values) for name, values in plain.items()}
    for place, tensor in tensors.items():
        name, _, key = place.rpartition("/")
        parameter = parameters[name]
        if tensor.shape == parameter.shape and tensor.ndim:
            # of the parameter's own memory format, on its device
            tensor = torch.empty_like(parameter, dtype=tensor.dtype, requires_grad=False).copy_(tensor)
        states[name][key] = tensor
    for name, state in states.items():
        _check_layout(run.optimizer, name, parameters[name], state)
    run.optimizer.state.clear()
    for name, state in states.items():
        run.optimizer.state[parameters[name]] = state


#: What the optimizers that have a name here keep of each parameter; torch finds out in the middle of a step otherwise.
_LAYOUTS: dict[type, tuple[str, ...]] = {
    torch.optim.SGD: ("momentum_buffer",),
    torch.optim.AdamW: ("step", "exp_avg", "exp_avg_sq"),
}


def _check_layout(optimizer: torch.optim.Optimizer, name: str, parameter: Tensor, state: Mapping[str, Any]) -> None:
    for key in _LAYOUTS.get(type(optimizer), ()) if state else ():
        value, shape = state.get(key), () if key == "step" else parameter.shape
        if value is None and type(optimizer) is torch.optim.SGD:
            continue
        if not isinstance(value, Tensor) or value.shape != shape or value.is_complex() != parameter.is_complex():
            raise ValueError(f"{key} of {name} is no tensor of shape {tuple(shape)}")
        if not value.is_floating_point() and not value.is_complex():
            raise ValueError(f"{key} of {name} is {value.dtype}")
