"""Where a model's weights come from: the project's pretrained ones, a file, or chance."""

from __future__ import annotations

import contextlib
import pickle
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from surgeon.checkpoint import read_header
from surgeon.errors import CheckpointError, InputError

#: Seconds after which a server counts as unreachable.
TIMEOUT = 10.0

#: What DataParallel puts in front of every name.
_WRAPPED = "module."
#: Keys under which training scripts keep the weights inside a checkpoint.
_NESTED = ("state_dict", "model_state_dict", "model")


_RANDOM = (
    "RANDOM WEIGHTS: the pretrained weights of {name} can't be reached ({why}). The ranking says nothing about a "
    "trained model. Give --weights FILE, or --weights none to make random weights your choice."
)


class Unreachable(Exception):
    """Pretrained weights that can't be had now; the message says why."""


class Found(NamedTuple):
    """What became of `--weights`: what they are, in words, whether they are random, and the warnings."""

    told: str
    random: bool = False
    warnings: tuple[str, ...] = ()


def pretrained(name: str, weights: str | None, load: Callable[[], str]) -> Found:
    """Follow a `--weights` that names no file.

    `load` fills the model with pretrained ones, and says which.

    Raises
    ------
    InputError
        If pretrained ones were asked for and can't be had.
    """
    if weights is not None and weights.lower() == "none":
        return Found("random (--weights none)", random=True)
    try:
        return Found(load())
    except Unreachable as problem:  # what doesn't fit is another matter
        if weights is not None:
            raise InputError(
                f"the pretrained weights of {name} can't be loaded ({problem}); go on with --weights none (random) or "
                "--weights FILE"
            ) from problem
        return Found("random", random=True, warnings=(_RANDOM.format(name=name, why=problem),))


def reach(url: str) -> None:
    """Ask a server for one address, for at most :data:`TIMEOUT` seconds, name resolution and proxies included.

    Raises
    ------
    Unreachable
        If it doesn't answer.
    """
    problems: list[Exception] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=TIMEOUT):  # noqa: S310  # url is torchvision's own
                pass
        except urllib.error.HTTPError as answer:
            if answer.code >= 500:
                problems.append(answer)
        except (OSError, ValueError) as problem:
            problems.append(problem)

    worker = threading.Thread(target=ask, daemon=True)  # a resolver has no time limit of its own
    worker.start()
    worker.join(TIMEOUT)
    if worker.is_alive():
        raise Unreachable(f"no answer from {url} within {TIMEOUT:.0f} s")
    if problems:
        raise Unreachable(f"{url}: {problems[0]}")


@contextlib.contextmanager
def time_limit() -> Iterator[None]:
    """Let no single network operation inside take longer than :data:`TIMEOUT` seconds."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def fetch(url: str, *, progress: bool = False) -> dict[str, Tensor]:
    """A state dict from the local cache, or else from the network; loaded with ``weights_only``.

    Raises
    ------
    Unreachable
        If it is neither here nor there.
    """
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if not cached.exists():
        reach(url)
    try:
        with time_limit():
            state = torch.hub.load_state_dict_from_url(
                url, map_location="cpu", progress=progress, check_hash=True, weights_only=True
            )
    except (OSError, RuntimeError, pickle.UnpicklingError) as problem:
        raise Unreachable(f"{url}: {problem}") from problem
    return dict(state)


def read(path: Path) -> dict[str, Tensor]:
    """A state dict from a safetensors file or from what ``torch.save`` wrote; nothing but tensors is unpickled.

    Raises
    ------
    InputError
        If it is neither, or holds anything else than named tensors.
    OSError
        If it can't be read.
    """
    if path.exists() and not path.is_file() and not path.is_dir():  # opening a pipe would wait for a writer
        raise InputError(f"{path}: is a device or a pipe, no regular file")
    with path.open("rb") as file:
        start = file.read(16)
    state = _read_torch(path) if _is_torch(start) else _read_safetensors(path)
    for key in _NESTED:
        if isinstance(state.get(key), Mapping):
            state = dict(state[key])
    for name, value in state.items():
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            raise InputError(f"{path}: entry {name!r} is {kind}; a state dict (names to tensors) is needed")
    if not state:
        raise InputError(f"{path}: no tensors in it")
    return state


def fill(model: nn.Module, state: Mapping[str, Tensor], path: str) -> None:
    """Load `state` into `model`, all of it.

    Raises
    ------
    InputError
        With the first difference in name or shape.
    """
    own = model.state_dict()
    state = as_named(state, own)
    if missing := [name for name in own if name not in state and not name.endswith("num_batches_tracked")]:
        raise InputError(f"{path}: {missing[0]} of {type(model).__name__} is missing{_count(missing)}")
    if extra := [name for name in state if name not in own]:
        raise InputError(f"{path}: {extra[0]} doesn't belong to {type(model).__name__}{_count(extra)}")
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            shapes = f"{list(tensor.shape)}, {type(model).__name__} has {list(own[name].shape)}"
            raise InputError(f"{path}: {name} has shape {shapes}")
    model.load_state_dict(dict(state), strict=False)


def as_named(state: Mapping[str, Tensor], own: Collection[str]) -> Mapping[str, Tensor]:
    """Without DataParallel's prefix, where more names are the model's `own` so: a part of it may be called module."""
    bare = {name.removeprefix(_WRAPPED): value for name, value in state.items()}
    return bare if sum(name in own for name in bare) > sum(name in own for name in state) else state


def _count(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _is_torch(start: bytes) -> bool:
    return start.startswith(b"PK") or start[:1] == b"\x80"  # a zip archive, or the older bare pickle


def _read_torch(path: Path) -> dict[str, Any]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as problem:
        raise InputError(
            f"{path}: holds more than tensors, and is not unpickled ({str(problem).splitlines()[0]}); save the state "
            "dict only: torch.save(model.state_dict(), path)"
        ) from problem
    except MemoryError:
        raise
    except Exception as problem:  # the unpickler of a damaged file fails in any way
        told = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise InputError(f"{path}: damaged, or not written by torch.save: {told}") from problem
    if not isinstance(loaded, Mapping):
        raise InputError(f"{path}: holds {type(loaded).__name__}; a state dict (names to tensors) is needed")
    return {str(name): value for name, value in loaded.items()}


def _check_whole(path: Path) -> None:
    """A file of surgeon's whose model is not cut holds the whole model's weights."""
    header = read_header(path)
    if header.plan.removed or header.graph is not None or header.aliases:
        raise CheckpointError(f"{path}: already pruned; give it as --model, or open it with surgeon.load")


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            if "surgeon" in (file.metadata() or {}):
                _check_whole(path)
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dict
    except SafetensorError as problem:
        raise InputError(f"{path}: neither a safetensors file nor one that torch.save wrote: {problem}") from problem
