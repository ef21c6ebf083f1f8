"""Several processes as one: sums over all of their data, and decisions that are the same in each.

Under ``accelerate launch`` or ``torchrun`` every process runs the same program on the same data; each goes through its
share of the batches, and whatever is added up over the data is added up over the processes. What is decided from sums
is decided alike everywhere; what can't be summed (a time) is the first process's word. Nothing here is done, and
nothing asked of anybody, where there is one process only.

Before they exchange anything, the processes tell each other what they are about to do: one that failed says so there,
and the others stop with its message instead of waiting.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, Sampler

from surgeon.errors import ProcessError

__all__ = [
    "Own", "agree", "alone", "count", "fingerprint", "first", "from_first", "gathered", "is_shared", "kept", "rank",
    "rows_of_all", "same", "seed_of", "share", "start", "together", "total",
]  # fmt: skip

Item = TypeVar("Item")
#: How long a process that failed waits for the others to hear of it.
_PATIENCE = datetime.timedelta(seconds=60)
_FAILED = 0

_alone: ContextVar[bool] = ContextVar("surgeon_alone", default=False)
_inside: ContextVar[bool] = ContextVar("surgeon_together", default=False)


# ---------------------------------------------------------------- who there is


def start() -> None:
    """Join the processes that a launcher started with this one (``accelerate launch``, ``torchrun``), if it did.

    The device of each is then the one that accelerate gives it. A program that has called
    ``torch.distributed.init_process_group``, or made an ``accelerate.Accelerator``, needs no start.
    """
    if dist.is_available() and not dist.is_initialized() and launched() > 1:
        from accelerate import PartialState

        PartialState()


def launched() -> int:
    """How many processes the launcher says that there are, be they joined or not."""
    return int(os.environ.get("WORLD_SIZE", "1") or 1)


def count() -> int:
    """How many processes work together."""
    return 1 if _alone.get() or not dist.is_available() or not dist.is_initialized() else dist.get_world_size()


def rank() -> int:
    """Which of them this one is, from 0."""
    return dist.get_rank() if count() > 1 else 0


def first() -> bool:
    """Whether this is the process that writes and speaks."""
    return rank() == 0


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """In the body this process works by itself: for work that not every process does."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


# ---------------------------------------------------------------- whose data is whose


class Own(Sequence[tuple[int, Item]], Generic[Item]):
    """Batches of this process, each with its number among those of all; `of_all` is how many all have."""

    def __init__(self, batches: Iterable[tuple[int, Item]]) -> None:
        self._batches = list(batches)
        (counts,) = total(torch.tensor([len(self._batches)]))
        self.of_all = int(counts)

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: Any) -> Any:
        return self._batches[index]


def kept(batches: Iterable[Any]) -> Own[Any]:
    """The share of this process, to be gone through several times."""
    return batches if isinstance(batches, Own) else Own(share(batches))


def share(batches: Iterable[Any]) -> Iterator[tuple[int, Any]]:
    """Batches of this process, each with its number among those of all.

    Every n-th of what all iterate alike; all of what is this process's alone already (a ``DistributedSampler``, a
    loader that accelerate has prepared). A ``DataLoader`` loads no others, and shuffles as the first process does.
    """
    size, own = count(), rank()
    if isinstance(batches, Own):
        yield from batches
    elif size == 1:
        yield from enumerate(batches)
    elif is_shared(batches):
        yield from ((index * size + own, batch) for index, batch in enumerate(batches))
    else:
        yield from zip(itertools.count(own, size), _every(batches, own, size), strict=False)


def is_shared(batches: Any) -> bool:
    """Whether the processes have different batches already."""
    samplers = (getattr(batches, "sampler", None), getattr(batches, "batch_sampler", None))
    prepared = type(batches).__module__.startswith("accelerate.")
    return prepared or any(isinstance(sampler, DistributedSampler) for sampler in samplers)


def _every(batches: Iterable[Any], own: int, size: int) -> Iterator[Any]:
    if not isinstance(batches, DataLoader):
        return itertools.islice(batches, own, None, size)
    if not reads_by_index(batches):
        return _in_common_order(itertools.islice(batches, own, None, size))
    return _in_common_order(reading(batches, _Every(batches.batch_sampler, own, size)))


def reads_by_index(loader: Any) -> bool:
    """Whether a loader's batches are lists of indices, of which a process can leave some out."""
    plain = type(loader) is DataLoader and loader.batch_sampler is not None
    return plain and not isinstance(loader.dataset, IterableDataset)


def reading(loader: DataLoader[Any], sampler: Iterable[list[int]]) -> DataLoader[Any]:
    """A loader of other batches of the same data."""
    return DataLoader(
        loader.dataset, batch_sampler=sampler, num_workers=loader.num_workers, collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory, timeout=loader.timeout, worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context, generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
    )  # fmt: skip


class _Every(Sampler[list[int]]):
    """Every n-th batch."""

    def __init__(self, batches: Any, own: int, size: int) -> None:
        self.batch_sampler, self._own, self._size = batches, own, size

    def __iter__(self) -> Iterator[list[int]]:
        return itertools.islice(iter(self.batch_sampler), self._own, None, self._size)


def _in_common_order(batches: Iterable[Any]) -> Iterator[Any]:
    """Begin with the random numbers of the first process, which the order is drawn from; then go on with one's own."""
    before = torch.get_rng_state()
    torch.set_rng_state(same(before))
    left = iter(batches)
    head = list(itertools.islice(left, 1))
    if not first():
        torch.set_rng_state(before)
    return itertools.chain(head, left)


def seed_of(*parts: int | str) -> int:
    """A seed below 2^63 for what is drawn at some place: the same whoever draws there, unlike its neighbours'."""
    digest = hashlib.blake2b(":".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


# ---------------------------------------------------------------- what they exchange


def total(*parts: Tensor) -> list[Tensor]:
    """The sums of these tensors over all processes, as float64, where each was; the same bits everywhere."""
    if count() == 1:
        return [part.double() for part in parts]
    flat = torch.cat([part.detach().double().cpu().reshape(-1) for part in parts])
    _meet(f"a sum of {flat.numel()} numbers")
    with _told():
        dist.all_reduce(flat, group=_group())
    pieces = torch.split(flat, [part.numel() for part in parts])
    return [piece.view(part.shape).to(part.device) for piece, part in zip(pieces, parts, strict=True)]


def same(tensor: Tensor) -> Tensor:
    """The first process's tensor, in every process; its shape and type are those of each one's own."""
    if count() == 1:
        return tensor
    found = tensor.detach().cpu().contiguous().clone()
    _meet(f"a tensor of {found.numel()} numbers from the first")
    with _told():
        dist.broadcast(found.view(-1).view(torch.uint8), src=0, group=_group())
    return found.to(tensor.device)


def from_first(make: Callable[[], Item]) -> Item:
    """What `make` gives in the first process, in every process; something that JSON can hold.

    The others don't call it. In it, the first process works by itself.
    """
    if count() == 1:
        return make()
    if not first():
        _meet("word from the first")
        return _hear(0)  # type: ignore[no-any-return]  # what the first says is what it makes
    with alone():
        made = make()
    _meet("word from the first")
    _say(made)
    return made


def gathered(value: Any) -> list[Any]:
    """What every process says here, in order; something that JSON can hold."""
    if count() == 1:
        return [value]
    _meet("word from each")
    return [_say(value) if turn == rank() else _hear(turn) for turn in range(count())]


def rows_of_all(rows: Tensor) -> Tensor:
    """The rows (axis 1 of three) that all processes have, one process after the other."""
    if count() == 1:
        return rows
    lengths = gathered(rows.shape[1])
    whole = rows.new_zeros((rows.shape[0], sum(lengths), rows.shape[2]), dtype=torch.float64)
    begin = sum(lengths[: rank()])
    whole[:, begin : begin + rows.shape[1]] = rows.double()
    return total(whole)[0].to(rows.dtype)


def agree(what: str, value: str) -> None:
    """Go on only if `value` is the same in all processes.

    Raises
    ------
    ProcessError
        If it isn't.
    """
    if count() > 1 and len(set(gathered(value))) > 1:
        raise ProcessError(f"the processes have different {what}: give each the same model, data, options and seed")


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A digest of names, types and numbers; empty where there is nobody to compare with."""
    if count() == 1:
        return ""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        if tensor.device.type != "meta":
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# ---------------------------------------------------------------- how they stay in step


@contextlib.contextmanager
def together(what: str) -> Iterator[None]:
    """The body ends well in all processes or in none: where it fails in one, it fails in the others, too.

    Raises
    ------
    ProcessError
        If it failed elsewhere.
    """
    if count() == 1 or _inside.get():
        yield
        return
    token = _inside.set(True)
    try:
        yield
        _meet(f"the end of {what}")
    except ProcessError:
        raise
    except Exception as problem:
        _confess(f"{type(problem).__name__}: {problem}")
        raise
    finally:
        _inside.reset(token)


def _meet(what: str) -> None:
    """Wait until all processes are about to do the same."""
    code = 1 + int.from_bytes(hashlib.blake2b(what.encode(), digest_size=7).digest(), "little")
    codes = _codes(code, None)
    if _FAILED in codes:
        who = codes.index(_FAILED)
        raise ProcessError(f"process {who} failed: {_hear(who)}")
    if len(set(codes)) > 1:
        raise ProcessError(f"the processes have come apart before {what}: give each the same model, data and options")


def _confess(message: str) -> None:
    """Let the others know; if they don't come to hear it, be it so."""
    with contextlib.suppress(ProcessError):
        codes = _codes(_FAILED, _PATIENCE)
        who = codes.index(_FAILED)
        if who == rank():
            _say(message)
        else:
            _hear(who)


def _codes(code: int, patience: datetime.timedelta | None) -> list[int]:
    own = torch.tensor([code], dtype=torch.int64)
    found = [torch.zeros_like(own) for _ in range(count())]
    with _told():
        work = dist.all_gather(found, own, group=_group(), async_op=True)
        assert work is not None
        if patience is None:
            work.wait()
        else:
            work.wait(patience)
    return [int(code) for code in found]


def _say(value: Item) -> Item:
    """Tell all others."""
    text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    with _told():
        dist.broadcast(torch.tensor([len(text)]), src=rank(), group=_group())
        dist.broadcast(text, src=rank(), group=_group())
    return value


def _hear(who: int) -> Any:
    length = torch.zeros(1, dtype=torch.int64)
    with _told():
        dist.broadcast(length, src=who, group=_group())
        text = torch.zeros(int(length), dtype=torch.uint8)
        dist.broadcast(text, src=who, group=_group())
    return json.loads(text.numpy().tobytes())


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except RuntimeError as problem:  # a connection that was closed, a time that is over
        raise ProcessError(f"lost the other processes: {str(problem).splitlines()[0]}") from problem


_groups: dict[int, tuple[Any, Any]] = {}


def _group() -> Any:
    """A group of our own: what the program itself sends, or a training step, never gets mixed up with ours."""
    whole = dist.group.WORLD
    known = _groups.get(os.getpid())
    if known is None or known[0] is not whole:
        known = whole, dist.new_group(backend="gloo")
        _groups[os.getpid()] = known
    return known[1]
