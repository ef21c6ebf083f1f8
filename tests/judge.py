"""One random cut of one random network, pruned by surgeon and judged by the oracle."""

from __future__ import annotations

import random
import traceback
from dataclasses import dataclass, replace
from typing import Literal

import torch

import surgeon
from surgeon.errors import BudgetError, NothingToCutError, VerificationError
from surgeon.rewriting import fit
from tests.networks import Spec, sample_network
from tests.oracle import OracleError, compare

Status = Literal["exact", "refused", "wrong", "crash"]


@dataclass(frozen=True)
class Cut:
    """How much goes, and by which random scores."""

    ratio: float
    scope: str
    seed: int


@dataclass(frozen=True)
class Outcome:
    """What came of one cut; `detail` is the reason unless it was exact."""

    status: Status
    detail: str = ""
    error: float = 0.0
    effect: float = 0.0
    removed: int = 0
    proven: bool = True


def sample_cut(seed: int) -> Cut:
    """The cut of `seed`: 10 to 80 % of the channels."""
    draw = random.Random(~seed)
    return Cut(round(draw.uniform(0.1, 0.8), 2), draw.choice(("global", "local")), seed)


def judge(spec: Spec, cut: Cut) -> Outcome:
    """Prune with verification on, then ask the oracle, on the example and on a batch of another size."""
    try:
        return _judge(spec, cut)
    except (BudgetError, NothingToCutError) as error:
        return Outcome("refused", _first_line(error))
    except (VerificationError, OracleError) as error:
        return Outcome("wrong", f"{type(error).__name__}: {_first_line(error)}")
    except Exception as error:  # noqa: BLE001  # a crash of any kind is what we count
        return Outcome("crash", f"{type(error).__name__}: {_first_line(error)} at {_place(error)}")


def judge_seed(seed: int, extended: bool = False) -> Outcome:
    """Network and cut of `seed`."""
    return judge(sample_network(seed, extended), sample_cut(seed))


def _judge(spec: Spec, cut: Cut) -> Outcome:
    model, inputs = spec.build(), spec.inputs()
    result = surgeon.prune(model, inputs, ratio=cut.ratio, criterion="random", scope=cut.scope, seed=cut.seed)
    _untouched(spec, model)
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
    return Outcome("exact", "", verdict.error, verdict.effect, verdict.removed, proven)


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
