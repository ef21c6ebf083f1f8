"""Search for the numbers that follow the widths, where a trial fails; nothing that was of no use is tried again."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence

from torch import fx

from surgeon.channels import ChannelGraph
from surgeon.channels.structure import Flags
from surgeon.trial.bindings import (
    Binding,
    Guess,
    bind_alike,
    calls_alike,
    guesses,
    line_and_operator,
    settings,
    together,
)
from surgeon.trial.blame import Misfit
from surgeon.trial.fitting import Fit, attempt
from surgeon.trial.targets import Target

#: At how many misfits one fit looks for bindings, and how many pairs of numbers it tries there.
_MOST_EXPANSIONS, _MOST_PAIRS = 24, 10
#: After how many trials of one plan nothing more is looked for: what doesn't follow then stays as it is.
_MOST_TRIALS = 240
#: One place of the program gets one part in so many of what the others have left: a hopeless one mustn't take all.
_PLACES = 4
#: At how many calls of a module the meaning of its other numbers is looked for.
_MOST_BESIDE = 200
#: At how many calls of one line a search must have failed alike before the others aren't searched.
_ENOUGH = 2
#: The numbers that bindings come to, as text: trials with equal ones are the same trial.
TrialKey = frozenset[tuple[Target, str]]
#: Numbers to bind together.
_Choice = tuple[Guess, ...]


class Search:
    """What the trials of one plan have said, over all its rounds.

    Many modules are alike, and a plan is made again for every number that doesn't follow: without a memory the same
    guesses would fail at every block and in every round.
    """

    def __init__(self) -> None:
        self._spent: Counter[Hashable] = Counter()
        self._idle: set[Hashable] = set()
        self._failed: dict[Hashable, set[fx.Node]] = {}

    def is_spent(self, misfit: Misfit) -> bool:
        """Whether nothing more is looked for at a misfit's place: its share of the trials has been used up."""
        own = self._spent[_charged(misfit)]
        return own * _PLACES >= _MOST_TRIALS - self._spent.total() + own

    def spend(self, misfit: Misfit) -> None:
        """Charge a trial to the place that it is made because of."""
        self._spent[_charged(misfit)] += 1

    def is_idle(self, misfit: Misfit, guess: Guess) -> bool:
        """Whether binding this number is known to change nothing at calls of the misfit's line."""
        return (line_and_operator(misfit.node), guess.kind) in self._idle

    def note(self, misfit: Misfit, chosen: _Choice, outcome: Fit | Misfit) -> None:
        """Take in what came of binding these numbers at a misfit."""
        if len(chosen) == 1 and isinstance(outcome, Misfit) and _is_same(misfit, outcome):
            self._idle.add((line_and_operator(misfit.node), chosen[0].kind))

    def give_up(self, misfit: Misfit) -> None:
        """Take in that no number helps at a misfit."""
        self._failed.setdefault(_situation(misfit), set()).add(misfit.node)

    def is_hopeless(self, misfit: Misfit) -> bool:
        """Whether there is nothing to look for at a misfit: what there is has failed here, or at calls like it."""
        if misfit.numeric or misfit.step > 1 or self.is_spent(misfit):
            return True  # numeric: the sizes follow, so no number is bound to a width here; a kernel asks for none
        nodes = self._failed.get(_situation(misfit), set()) if _tells(misfit) else set()
        return misfit.node in nodes or len(nodes) >= _ENOUGH


def _charged(misfit: Misfit) -> Hashable:
    """Whose trials a misfit's are: its line's, or, where no line is known, its module's."""
    line, name = line_and_operator(misfit.node)
    return line or misfit.node.meta["site"].path, name


def _situation(misfit: Misfit) -> Hashable:
    return line_and_operator(misfit.node), misfit.why


def _tells(misfit: Misfit) -> bool:
    """Whether its message shows the numbers that the call got, so that another number would show there."""
    return misfit.stopped and re.search(r"\d", misfit.why) is not None


def _is_same(misfit: Misfit, outcome: Misfit) -> bool:
    return outcome.node is misfit.node and outcome.why == misfit.why and _tells(misfit)


def find_fit(graph: ChannelGraph, kept: Flags, known: tuple[Binding, ...] = (), search: Search | None = None) -> Fit:
    """Match the small model that keeps exactly these channels (bool per channel) with the dense one.

    `known` are bindings found before; where the forward fails, more are looked for. `search`: what earlier rounds of
    the same plan have tried.

    Raises
    ------
    Misfit
        If the forward doesn't follow; it carries the bindings found so far.
    """
    search = search or Search()
    best = outcome = attempt(graph, kept, known)
    open_ends: list[Fit | Misfit] = []
    for _ in range(_MOST_EXPANSIONS):
        if isinstance(outcome, Fit):
            return outcome
        if _reach(graph, outcome) > _reach(graph, best):
            best = outcome
        open_ends += _bound(graph, outcome, kept, search)
        if not open_ends:
            break
        outcome = open_ends.pop()
    assert isinstance(best, Misfit)
    raise best


def _bound(graph: ChannelGraph, misfit: Misfit, kept: Flags, search: Search) -> list[Fit | Misfit]:
    """The outcomes with more numbers bound that get furthest beyond the misfit, the likeliest last.

    A number is bound at all calls of the line; where that fails already in a module before, at the one call.
    """
    if search.is_hopeless(misfit):
        return []
    trials = _Trials(graph, misfit, kept, search)
    taken = {binding.target for binding in misfit.bindings}
    found = [g for g in guesses(graph, misfit.node, kept) if g.target not in taken]
    everywhere = calls_alike(graph, misfit.node) if found else []
    ways = ((choices, everywhere) for choices in _choices(found, misfit, search))
    for choices, nodes in itertools.chain(ways, _beside(graph, misfit, kept)):
        further = trials.reaching(choices, nodes)
        if further:
            return further
    search.give_up(misfit)
    return []


def _choices(found: Sequence[Guess], misfit: Misfit, search: Search) -> Iterator[list[_Choice]]:
    """What to bind, the likeliest first: all numbers that the call itself got, one of them, any one, any two."""
    joint = together(found)
    if len(joint) > 1:
        yield [joint]
    yield [(guess,) for guess in found if guess.given and not search.is_idle(misfit, guess)]
    yield [(guess,) for guess in found if not guess.given and not search.is_idle(misfit, guess)]
    pairs = itertools.combinations([guess for guess in found if not search.is_idle(misfit, guess)], 2)
    yield list(itertools.islice((pair for pair in pairs if pair[0].target != pair[1].target), _MOST_PAIRS))


def _beside(graph: ChannelGraph, misfit: Misfit, kept: Flags) -> Iterator[tuple[list[_Choice], list[fx.Node]]]:
    """Numbers of the misfit's module that mean widths elsewhere in it, each with the calls where it does.

    Where one number of a module is bound, one that it is compared with (``if self.size != self.out_size``) may have to
    follow as well, or the forward takes another way.
    """
    path = misfit.node.meta["site"].path
    taken = {binding.target for binding in misfit.bindings}
    if not any(target.path == path for target in taken):
        return
    for call in itertools.islice(_inside(graph, path), _MOST_BESIDE):
        for guess in guesses(graph, call, kept) if call is not misfit.node else ():
            if guess.target.path == path and guess.target not in taken:
                taken.add(guess.target)
                yield [(guess,)], calls_alike(graph, call)


def _inside(graph: ChannelGraph, path: str) -> Iterator[fx.Node]:
    """The calls in a module and in the modules in it."""
    inside = f"{path}." if path else ""
    yield from (n for n in graph.trace.calls if f"{n.meta['site'].path}.".startswith(inside))


class _Trials:
    """Trials with more numbers bound, all because of one misfit."""

    def __init__(self, graph: ChannelGraph, misfit: Misfit, kept: Flags, search: Search) -> None:
        self._graph, self._misfit, self._kept, self._search = graph, misfit, kept, search
        self._tried = {_trial_key(misfit.bindings, kept)}

    def of(self, choices: Iterable[_Choice], nodes: Sequence[fx.Node]) -> dict[_Choice, Fit | Misfit]:
        """What comes of each choice, bound at all of these calls; none after one that fits."""
        outcomes: dict[_Choice, Fit | Misfit] = {}
        for chosen in choices:
            bindings = _with(self._graph, self._misfit, chosen, nodes)
            key = _trial_key(bindings, self._kept)
            if key not in self._tried and not self._search.is_spent(self._misfit):
                self._tried.add(key)
                self._search.spend(self._misfit)
                outcomes[chosen] = attempt(self._graph, self._kept, bindings)
                if nodes[0] is self._misfit.node:
                    self._search.note(self._misfit, chosen, outcomes[chosen])
            if isinstance(outcomes.get(chosen), Fit):
                break
        return outcomes

    def reaching(self, choices: Iterable[_Choice], nodes: Sequence[fx.Node]) -> list[Fit | Misfit]:
        """What gets furthest beyond the misfit, of each choice at all of these calls, else at the first of them."""
        outcomes = self.of(choices, nodes)
        further = self.furthest(outcomes.values())
        early = [chosen for chosen, outcome in outcomes.items() if not further and self.fell_back(outcome)]
        return further or self.furthest(self.of(early, nodes[:1]).values())

    def furthest(self, outcomes: Iterable[Fit | Misfit]) -> list[Fit | Misfit]:
        """Those that get further than the misfit, and furthest of all; the likeliest last."""
        found = list(outcomes)
        best = max((_reach(self._graph, outcome) for outcome in found), default=0.0)
        if best <= _reach(self._graph, self._misfit):
            return []
        return [outcome for outcome in reversed(found) if _reach(self._graph, outcome) == best]

    def fell_back(self, outcome: Fit | Misfit) -> bool:
        """Whether a trial failed already before the misfit, in a module that could do without the numbers bound."""
        if _reach(self._graph, outcome) >= _reach(self._graph, self._misfit) or isinstance(outcome, Fit):
            return False
        return bool(outcome.node.meta["site"].path != self._misfit.node.meta["site"].path)


def _with(graph: ChannelGraph, misfit: Misfit, chosen: _Choice, nodes: Sequence[fx.Node]) -> tuple[Binding, ...]:
    """The bindings with these guesses bound as well, at all of these calls."""
    bound = {binding.target: binding for binding in misfit.bindings}
    for guess in chosen:
        for binding in bind_alike(graph, nodes, guess):
            bound.setdefault(binding.target, binding)
    return tuple(bound.values())


def _trial_key(bindings: Sequence[Binding], kept: Flags) -> TrialKey:
    return frozenset((target, repr(value)) for target, value in settings(bindings, kept).items())


def _reach(graph: ChannelGraph, outcome: Fit | Misfit) -> float:
    """How far a trial got."""
    return math.inf if isinstance(outcome, Fit) else graph.trace.order[outcome.node]
