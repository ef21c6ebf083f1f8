"""The operator table: ATen name -> rule. What isn't in it pins every label that flows into it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: A rule takes the ledger and the call's arguments, a :class:`Marked` for each tensor; it gives the marked result.
Rule = Callable[..., Any]
TABLE: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Enter a rule into the table under the names `names`; a second entry for one name is an error.

    Operators of torch and torchvision go by their bare name (``"add"``), all others by that of their library as well:
    ``"mylib::gate"``.

    Raises
    ------
    ValueError
        If there is a rule for one of the names.
    """

    def enter(function: Rule) -> Rule:
        for name in names:
            if name in TABLE:
                raise ValueError(f"two rules for operator {name!r}")
            TABLE[name] = function
        return function

    return enter
