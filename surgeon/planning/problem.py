"""What a plan is made from: a graph, the moves that its bundles can make, and what widths cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from surgeon.channels import ChannelGraph
from surgeon.channels.structure import Flags
from surgeon.cost import Cost, Latency
from surgeon.planning.moves import Moves, Staircase, Taken, in_order


@dataclass(frozen=True)
class Problem:
    """One planning problem.

    Attributes
    ----------
    graph:
        The channels.
    stairs:
        Of each bundle the moves that it can make, the least useful channels first.
    cost:
        What widths cost.
    scope:
        ``"global"`` or ``"local"``, as in :func:`surgeon.make_plan`.
    latency, time_goal:
        Predicted time and the share of the dense model's to get down to, where time matters.
    """

    graph: ChannelGraph
    stairs: Sequence[Staircase]
    cost: Cost
    scope: str
    latency: Latency | None = None
    time_goal: float | None = None

    def kept(self, taken: Taken) -> Flags:
        """Flags of the channels that stay when these moves are taken."""
        flags = self.cost.everything()
        for index, count in taken.items():
            for gone in self.stairs[index].removed(count):
                flags[gone] = False
        return flags

    def everything(self) -> Taken:
        """All moves."""
        return {index: len(stair) for index, stair in enumerate(self.stairs)}

    def levels(self, taken: Taken) -> dict[int, int]:
        """How many steps each of these bundles has lost."""
        return {index: int(self.stairs[index].levels[count - 1]) for index, count in taken.items()}

    def at_ratio(self, ratio: float) -> Taken:
        """Of every bundle the moves that remove at most this share of it, or the width nearest to that on its steps."""
        taken: Taken = {}
        for index, (bundle, stair) in enumerate(zip(self.graph.bundles, self.stairs, strict=True)):
            # 1e-9: 10 channels at 0.9 lose 9, although 10 * 0.9 is a hair off in binary
            wanted = int(bundle.steps * ratio + 1e-9)
            if len(stair):
                nearest = int(np.argmin(np.abs(stair.levels - wanted)))
                if abs(int(stair.levels[nearest]) - wanted) <= wanted:
                    taken[index] = nearest + 1
        return taken

    def order(self) -> Moves:
        """All moves in the order of the scope: by score, or by the share of their bundle that is gone."""
        moves = in_order(self.stairs)
        if self.scope == "local":
            steps = np.array([bundle.steps for bundle in self.graph.bundles])
            moves = moves.arranged(np.argsort(moves.levels / steps[moves.bundles], kind="stable"))
        return moves
