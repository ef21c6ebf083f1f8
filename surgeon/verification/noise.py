"""Random numbers that a forward draws, the same for both models.

Of noise that follows a width (``torch.randn_like(x)``) each channel's is as good as another's, so the cut model is
exact if it draws as the dense one does. To compare them, all places along an axis that was cut get the same number.
Numbers that the forward seeds itself are the same only where there are equally many, and so is noise of which one place
may meet several channels, since which ones these are is another question.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from surgeon.rules import POINTWISE, Marked
from surgeon.tracing import Call, is_copy, operator_name

#: What draws each place for itself, as many as it is told.
_BY_SIZE = frozenset({"rand", "randn", "randint", "normal"})
#: Likewise, as many as its operand has; and into its operand.
_BY_OPERAND = frozenset(
    {"rand_like", "randn_like", "randint_like", "normal_functional", "uniform", "exponential", "cauchy", "log_normal",
     "geometric"}
)  # fmt: skip
_INTO_OPERAND = frozenset({"normal_", "uniform_", "exponential_", "cauchy_", "log_normal_", "geometric_", "random_"})


class Noise:
    """Draws for a call of one recording what its like in the other draws as well.

    Parameters
    ----------
    partner:
        The small node of each dense one.
    marks:
        What is known of the dense values.
    """

    def __init__(self, partner: Mapping[fx.Node, fx.Node], marks: Mapping[fx.Node, Marked]) -> None:
        self._marks = marks
        drawn = [(dense, small) for dense, small in partner.items() if "noise" in dense.meta and "noise" in small.meta]
        self._pairs = {node: (dense, small) for dense, small in drawn for node in (dense, small)}

    def shared(self, call: Call) -> Call:
        """`call`, with the same numbers in both recordings."""

        def run(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if node not in self._pairs:
                return call(node, args, kwargs)
            dense, small = self._pairs[node]
            # what gives several results has no shape: it draws the same where its operands are as large
            sizes = zip(dense.meta.get("shape", ()), small.meta.get("shape", ()), strict=True)
            cut = [axis for axis, (one, other) in enumerate(sizes) if one != other]
            noise = dense.meta["noise"] and small.meta["noise"] and self._meets_one(dense)
            seed = zlib.crc32(dense.name.encode()) + int(node is small and bool(cut) and not noise)
            with _seeded(seed, _devices((*args, *kwargs.values()))):
                return _alike(call, node, args, kwargs, cut if noise else [])

        return run

    def _meets_one(self, node: fx.Node) -> bool:
        """Whether each place of noise meets one channel: it is used once, or at all uses in the order that it has."""
        found, queue = {node}, [node]
        while queue:
            made = [user for user in queue.pop().users if user in self._marks and self._marks[user].free]
            queue += [user for user in made if user not in found]
            found.update(made)
        moved = any(user is not node and not is_copy(user) and operator_name(user) not in POINTWISE for user in found)
        return not moved or all(len(value.users) == 1 for value in found)


def _alike(call: Call, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any], cut: list[int]) -> Any:
    """The call's numbers, but for the axes in `cut`: along these one that is repeated."""
    name = operator_name(node)
    if not cut or name not in _BY_SIZE | _BY_OPERAND | _INTO_OPERAND:
        return call(node, args, kwargs)
    if name not in _BY_SIZE:
        one = args[0]
        for axis in cut:
            one = one.narrow(axis, 0, 1)
        drawn = call(node, (one.clone(), *args[1:]), kwargs).expand(args[0].shape)
        return args[0].copy_(drawn) if name in _INTO_OPERAND else drawn.clone()
    place = next(index for index, value in enumerate(args) if isinstance(value, list | tuple))
    sizes = [1 if axis in cut else size for axis, size in enumerate(args[place])]
    return call(node, (*args[:place], sizes, *args[place + 1 :]), kwargs).expand(args[place]).clone()


@contextlib.contextmanager
def _seeded(seed: int, devices: Sequence[torch.device]) -> Iterator[None]:
    """Draw from this seed on the CPU and on these GPUs, and leave all generators as they were."""
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        for device in devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _devices(values: Iterable[Any]) -> list[torch.device]:
    """The GPUs whose generators a call may use."""
    found = {
        value.device if isinstance(value, Tensor) else value
        for value in values
        if isinstance(value, Tensor | torch.device)
    }
    return [device for device in found if device.type == "cuda"]
