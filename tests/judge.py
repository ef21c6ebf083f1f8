"""One random cut of one random network, pruned by surgeon and judged by the oracle."""

from __future__ import annotations

import random
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

import surgeon
from surgeon.errors import BudgetError, NothingToCutError, VerificationError
from surgeon.report import Report
from surgeon.rewriting import fit
from surgeon.rules import reasons
from tests.blocks.wraps import Wrapped
from tests.networks import Network, Spec, sample_network
from tests.oracle import OracleError, compare

Status = Literal["exact", "refused", "wrong", "crash"]


@dataclass(frozen=True)
class Cut:
    """How much goes, by which random scores, and under what conditions.

    `budget` names the argument of ``prune`` that `ratio` is turned into, `ignored` picks a layer that must stay.
    """

    ratio: float
    scope: str
    seed: int
    budget: str = "ratio"
    round_to: int | None = None
    ignored: int | None = None
    min_channels: int = 1

    def arguments(self, model: nn.Module) -> dict[str, Any]:
        """The keywords for ``prune``."""
        chosen = {"seed": self.seed, "scope": self.scope, "round_to": self.round_to, "min_channels": self.min_channels}
        return chosen | {"ignored_layers": self.stays(model), self.budget: self.amount(model)}

    def amount(self, model: nn.Module) -> Any:
        """What the budget says."""
        if self.budget == "filters":
            return max(1, int(self.ratio * sum(m.out_channels for m in _convolutions(model))))
        if self.budget in ("max_params", "max_macs"):
            return f"{100 - int(100 * self.ratio * 0.8)}%"
        return self.ratio

    def stays(self, model: nn.Module) -> list[str]:
        """Names of the layers that are ignored."""
        names = [name for name, m in model.named_modules() if isinstance(m, _Convolution | nn.Linear)]
        return [] if self.ignored is None or not names else [names[self.ignored % len(names)]]


_Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


def _convolutions(model: nn.Module) -> Iterator[nn.Conv2d]:
    return (m for m in model.modules() if isinstance(m, _Convolution))  # type: ignore[misc]  # all have out_channels


@dataclass(frozen=True)
class Outcome:
    """What came of one cut; `detail` is the reason unless it was exact.

    `whole` counts, by kind of block and reason, the layers inside blocks that had to keep all their filters.
    """

    status: Status
    detail: str = ""
    error: float = 0.0
    effect: float = 0.0
    removed: int = 0
    proven: bool = True
    whole: tuple[str, ...] = ()


BUDGETS = ("ratio", "ratio", "ratio", "ratio", "filters", "max_params", "max_macs")


def sample_cut(seed: int, extended: bool = False) -> Cut:
    """The cut of `seed`: 10 to 80 % of the channels; with `extended`, other budgets and conditions as well."""
    draw = random.Random(~seed)
    plain = Cut(round(draw.uniform(0.1, 0.8), 2), draw.choice(("global", "local")), seed)
    if not extended:
        return plain
    budget, least = draw.choice(BUDGETS), draw.choice((1, 1, 1, 2, 3))
    rounding, ignored = draw.choice((None, None, None, 2, 4)), draw.choice((None, None, draw.randrange(100)))
    return replace(plain, budget=budget, round_to=rounding, ignored=ignored, min_channels=least)


def judge(spec: Spec, cut: Cut) -> Outcome:
    """Prune with verification on, then ask the oracle, on the example and on a batch of another size."""
    try:
        return _judge(spec, cut)
    except (VerificationError, OracleError) as error:  # a cut that differs counts, also where nothing else is left
        return Outcome("wrong", f"{type(error).__name__}: {_first_line(error)}")
    except (BudgetError, NothingToCutError) as error:
        return Outcome("refused", _first_line(error))
    except Exception as error:  # noqa: BLE001  # a crash of any kind is what we count
        return Outcome("crash", f"{type(error).__name__}: {_first_line(error)} at {_place(error)}")


def judge_seed(seed: int, extended: bool = False) -> Outcome:
    """Network and cut of `seed`."""
    return judge(sample_network(seed, extended), sample_cut(seed, extended))


def _judge(spec: Spec, cut: Cut) -> Outcome:
    model, inputs = spec.build(), spec.inputs()
    result = surgeon.prune(model, inputs, criterion="random", **cut.arguments(model))
    _untouched(spec, model)
    _as_asked(cut, model, result.report)
    inexact = [note for note in result.report.notes if note.startswith("not exact")]
    if inexact:
        raise OracleError(f"a first cut was wrong, and only the check noticed: {inexact[0]}")
    source = fit(model, result.plan, inputs).source
    verdict = compare(model, result.model, source, *inputs)
    if verdict.removed == 0:
        raise OracleError("nothing was cut, and nothing was said")
    compare(model, result.model, source, *replace(spec, batch=spec.batch + 1).inputs())
    check = result.report.check
    proven = check is not None and check.status == "passed"
    whole = tuple(_whole(spec, model, result.report))
    return Outcome("exact", "", verdict.error, verdict.effect, verdict.removed, proven, whole)


def _as_asked(cut: Cut, model: nn.Module, report: Report) -> None:
    """The budget and the conditions hold."""
    stays = cut.stays(model)
    lost = [row.name for row in report.layers if row.name in stays and row.after < row.before]
    if lost:
        raise OracleError(f"ignored, and cut all the same: {lost}")
    amount = cut.amount(model)
    share = float(str(amount).rstrip("%")) / 100
    if cut.budget == "max_params" and report.params_after > share * report.params_before:
        raise OracleError(f"{report.params_after} parameters of {report.params_before} are left, asked for {amount}")
    if cut.budget == "max_macs" and report.macs_after > share * report.macs_before:
        raise OracleError(f"{report.macs_after} MACs of {report.macs_before} are left, asked for {amount}")
    if cut.budget == "filters" and report.filters_before - report.filters_after > amount:
        raise OracleError(f"{report.filters_before - report.filters_after} filters went, asked for {amount}")
    narrow = [row.name for row in report.layers if row.after < min(row.before, cut.min_channels)]
    if narrow:
        raise OracleError(f"narrower than {cut.min_channels}: {narrow}")


def _whole(spec: Spec, model: nn.Module, report: Report) -> Iterator[str]:
    """Kind of block and reason of each layer in a block that is used and keeps all of its filters."""
    assert isinstance(model, Network)
    expected = (reasons.IGNORED, reasons.OUTPUT, reasons.UNREACHED, reasons.EMPTY)
    for pin in report.pinned:
        path = pin.layer.split(".")
        if path[0] == "body" and pin.channels == pin.of and pin.reason not in expected:
            block = model.body[int(path[1])]
            inside = isinstance(block, Wrapped) and path[2:3] == ["inner"]
            rest = ".".join(path[3 if inside else 2 :])
            reason = "constant" if pin.reason.startswith("constant") else pin.reason
            yield f"{spec.parts[int(path[1])].kind} {rest}: {reason}"


def _untouched(spec: Spec, model: torch.nn.Module) -> None:
    fresh = spec.build().state_dict()
    for name, tensor in model.state_dict().items():
        if not torch.equal(tensor, fresh[name]):
            raise OracleError(f"the user's model changed: {name}")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:300]


def _place(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if "/surgeon/" in frame.filename] or list(frames)
    last = inside[-1]
    return f"{last.filename.rsplit('/surgeon/', 1)[-1]}:{last.lineno} {last.name}"
