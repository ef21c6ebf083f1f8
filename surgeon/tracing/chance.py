"""Random numbers in a forward: noise that is another each time, or numbers that the forward asks for by a seed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class Chance:
    """Follows torch's generators through a forward: what it seeds itself is as fixed as a weight, and no noise."""

    def __init__(self) -> None:
        self._state = _state()

    def is_noise(self, operands: Iterable[Any]) -> bool:
        """Whether a call's numbers come from torch's own generators, which nobody has set since the last call."""
        own = any(isinstance(operand, torch.Generator) for operand in operands)
        return not own and all(map(torch.equal, self._state, _state()))

    def go_on(self) -> None:
        """Take in that numbers were drawn."""
        self._state = _state()


def _state() -> list[Tensor]:
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if used else ())]
