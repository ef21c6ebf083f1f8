"""Sums over the data of all processes, and words that all of them hear."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from surgeon.errors import ProcessError
from surgeon.processes.handshake import group, hear, meet, say, told
from surgeon.processes.members import alone, count, first, rank

Item = TypeVar("Item")


def total(*parts: Tensor) -> list[Tensor]:
    """The sums of these tensors over all processes, as float64, where each was; the same bits everywhere."""
    if count() == 1:
        return [part.double() for part in parts]
    flat = torch.cat([part.detach().double().cpu().reshape(-1) for part in parts])
    meet(f"a sum of {flat.numel()} numbers")
    with told():
        dist.all_reduce(flat, group=group())
    pieces = torch.split(flat, [part.numel() for part in parts])
    return [piece.view(part.shape).to(part.device) for piece, part in zip(pieces, parts, strict=True)]


def same(tensor: Tensor) -> Tensor:
    """The first process's tensor, in every process; its shape and type are those of each one's own."""
    if count() == 1:
        return tensor
    found = tensor.detach().cpu().contiguous().clone()
    meet(f"a tensor of {found.numel()} numbers from the first")
    with told():
        dist.broadcast(found.view(-1).view(torch.uint8), src=0, group=group())
    return found.to(tensor.device)


def from_first(make: Callable[[], Item]) -> Item:
    """What `make` gives in the first process, in every process; something that JSON can hold.

    The others don't call it. In it, the first process works by itself.
    """
    if count() == 1:
        return make()
    if not first():
        meet("word from the first")
        return hear(0)  # type: ignore[no-any-return]  # what the first says is what it makes
    with alone():
        made = make()
    meet("word from the first")
    say(made)
    return made


def gathered(value: Any) -> list[Any]:
    """What every process says here, in order; something that JSON can hold."""
    if count() == 1:
        return [value]
    meet("word from each")
    return [say(value) if turn == rank() else hear(turn) for turn in range(count())]


def rows_of_all(rows: Tensor) -> Tensor:
    """The rows (axis 1 of three) that all processes have, one process after the other."""
    if count() == 1:
        return rows
    lengths = gathered(rows.shape[1])
    whole = rows.new_zeros((rows.shape[0], sum(lengths), rows.shape[2]), dtype=torch.float64)
    begin = sum(lengths[: rank()])
    whole[:, begin : begin + rows.shape[1]] = rows.double()
    return total(whole)[0].to(rows.dtype)


def agree(what: str, value: Callable[[], str]) -> None:
    """Go on only if all processes have the same value, which is not asked for where there is one process only.

    Raises
    ------
    ProcessError
        If it isn't.
    """
    if count() > 1 and len(set(gathered(value()))) > 1:
        raise ProcessError(f"the processes have different {what}: give each the same model, data, options and seed")


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A digest of names, types and numbers."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        if tensor.device.type != "meta":
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
