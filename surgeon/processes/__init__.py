"""Several processes as one: sums over all of their data, and decisions that are the same in each.

Under ``accelerate launch`` or ``torchrun`` every process runs the same program on the same data; each goes through its
share of the batches, and whatever is added up over the data is added up over the processes. What is decided from sums
is decided alike everywhere; what can't be summed (a time) is the first process's word. Nothing here is done, and
nothing asked of anybody, where there is one process only.

Before they exchange anything, the processes tell each other what they are about to do: one that failed says so there,
and the others stop with its message instead of waiting.
"""

from __future__ import annotations

from surgeon.processes.exchange import agree, fingerprint, from_first, gathered, rows_of_all, same, total
from surgeon.processes.handshake import together
from surgeon.processes.members import alone, count, first, launched, rank, start
from surgeon.processes.shares import (
    Own,
    is_shared,
    kept,
    length,
    own_batches,
    reading,
    reads_by_index,
    repeatable,
    seed_of,
)

__all__ = [
    "Own", "agree", "alone", "count", "fingerprint", "first", "from_first", "gathered", "is_shared", "kept",
    "launched", "length", "own_batches", "rank", "reading", "reads_by_index", "repeatable", "rows_of_all", "same",
    "seed_of", "start", "together", "total",
]  # fmt: skip
