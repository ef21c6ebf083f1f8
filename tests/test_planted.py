"""Wrong rules, planted in the table on purpose: the brute-force test of the rules catches each of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from surgeon.rules import TABLE, Ledger, Marked, Rule, algebra, layout
from tests.rule_samples import SAMPLES, Sample
from tests.test_rules import check, check_dependence, read


@dataclass(frozen=True)
class Planted:
    """A wrong rule for one operator, and the sample that must notice."""

    name: str
    sample: str
    rule: Rule
    what: str

    def __str__(self) -> str:
        return f"{self.name}: {self.what}"


def without(kinds: str, name: str) -> Rule:
    """The right rule, but what it notes in these lists of the ledger (couples, ties, pins, anchors...) is lost."""
    right = TABLE[name]

    def wrong(ledger: Ledger, *args: Any, **kwargs: Any) -> Any:
        before = {kind: copy.copy(getattr(ledger, kind)) for kind in kinds.split()}
        result = right(ledger, *args, **kwargs)
        for kind, noted in before.items():
            setattr(ledger, kind, noted)
        return result

    return wrong


def moved(change: Callable[..., Tensor]) -> Rule:
    """Data movement that moves labels in another way than the operator moves numbers."""

    def wrong(ledger: Ledger, x: Marked, *args: Any, **kwargs: Any) -> Marked:
        return layout.move(ledger, change, x, *args, **kwargs)

    return wrong


def unshifted(ledger: Ledger, tensors: Sequence[Marked], dim: int = 0) -> Marked:
    """A cat that writes every part over the first places, and nothing behind them."""

    def combine(labels: list[Tensor]) -> Tensor:
        whole = torch.cat(labels, dim)
        return torch.cat([labels[0], *[torch.zeros_like(part) for part in labels[1:]]], dim).reshape(whole.shape)

    return algebra.assemble(ledger, tensors, dim, combine)


def mirrored(ledger: Ledger, tensors: Sequence[Marked], dim: int = 0) -> Marked:
    """A cat of the parts in the other order."""
    return algebra.assemble(ledger, tensors, dim, lambda labels: torch.cat(labels[::-1], dim))


def reversed_parts(ledger: Ledger, x: Marked, *args: Any, **kwargs: Any) -> list[Marked]:
    """A split whose parts come in the other order."""
    parts: list[Marked] = SPLIT(ledger, x, *args, **kwargs)
    return parts[::-1]


def ended(ledger: Ledger, x: Marked, *args: Any, **kwargs: Any) -> Marked:
    """An operator of each place that forgets all channels."""
    result = algebra.pointwise(ledger, x, *args, **kwargs)
    return replace(result, planes=())


def other_axis(ledger: Ledger, x: Marked, dim: int, *_: Any) -> Marked:
    """A softmax along the axis next to the one that was meant."""
    return replace(layout.mix(ledger, x, [(dim + 1) % len(x.shape)]), value=None)


def summed_only(ledger: Ledger, x: Marked, dim: Any = None, keepdim: bool = False, **_: Any) -> Marked:
    """A mean that counts what was removed as zeros."""
    dims = range(len(x.shape)) if dim is None else [dim] if isinstance(dim, int) else dim
    return layout.reduce(ledger, x, [d % len(x.shape) for d in dims], keepdim)


def of_each_place(ledger: Ledger, x: Marked, dim: Any = None, keepdim: bool = False, **_: Any) -> Marked:
    """A mean taken for an elementwise operator: what it sums over goes on as if it were still there."""
    dims = range(len(x.shape)) if dim is None else [dim] if isinstance(dim, int) else dim
    gone = {d % len(x.shape) for d in dims}
    result = layout.reduce(ledger, x, sorted(gone), keepdim)
    planes = tuple(replace(p, labels=p.labels.narrow(a, 0, 1)) for p in x.planes for a in p.axes if a in gone)
    return replace(result, planes=(*result.planes, *planes)) if keepdim else result


SPLIT = TABLE["split"]
WRONG = [
    Planted("_softmax", "_softmax", algebra.pointwise, "pointwise"),
    Planted("_softmax", "_softmax", other_axis, "along the next axis"),
    Planted("_softmax", "_softmax-attention", algebra.pointwise, "pointwise, inside attention"),
    Planted("sort", "sort", lambda ledger, x, *_, **__: [x, x], "pointwise"),
    Planted("cumsum", "cumsum", algebra.pointwise, "pointwise"),
    Planted("flip", "flip", algebra.pointwise, "identity"),
    Planted("flip", "flip-on-itself", algebra.pointwise, "identity, where the order shows in a product"),
    Planted("roll", "roll", algebra.pointwise, "identity"),
    Planted("cat", "cat", unshifted, "doesn't shift"),
    Planted("cat", "cat", mirrored, "parts in the other order"),
    Planted("cat", "cat-halves-swapped", mirrored, "parts in the other order, halves of one tensor"),
    Planted("split", "split", reversed_parts, "parts in the other order"),
    Planted("convolution", "convolution", without("couples", "convolution"), "couples nothing"),
    Planted("convolution", "convolution-depthwise", without("couples", "convolution"), "couples nothing, depth-wise"),
    Planted("convolution", "convolution-grouped", without("couples", "convolution"), "couples nothing, in groups"),
    Planted("convolution", "convolution-on-an-input", without("pins", "convolution"), "an input holds nothing"),
    Planted("mm", "mm", without("couples", "mm"), "couples nothing"),
    Planted("addmm", "addmm", without("couples", "addmm"), "couples nothing"),
    Planted("add", "add", without("couples", "add"), "couples nothing"),
    Planted("relu", "relu", ended, "forgets all channels"),
    Planted("view", "view-in-halves", without("ties", "view"), "drops ties"),
    Planted("view", "view-heads", without("ties", "view"), "drops ties of heads"),
    Planted("mean", "mean", summed_only, "removed places count as zeros"),
    Planted("mean", "mean-centred", summed_only, "removed places count as zeros, centred"),
    Planted("mean", "mean-centred", of_each_place, "pointwise"),
    Planted("native_layer_norm", "native_layer_norm", without("statistics", "native_layer_norm"), "no statistics"),
    Planted("native_layer_norm", "native_layer_norm", without("couples", "native_layer_norm"), "couples nothing"),
    Planted("native_group_norm", "native_group_norm", without("ties anchors", "native_group_norm"), "no ties"),
    Planted("native_group_norm", "native_group_norm", without("statistics", "native_group_norm"), "no statistics"),
    Planted("amax", "amax", summed_only, "a sum over channels"),
    Planted("split", "split-otherwise", without("anchors ties", "split"), "parts are all the same"),
    Planted("linalg_qr", "linalg_qr-in-a-batch", algebra.pointwise, "pointwise"),
    Planted("pixel_shuffle", "pixel_shuffle", moved(lambda labels, _: labels), "identity"),
]


def find(name: str) -> Sample:
    """The sample of this name."""
    return next(sample for sample in SAMPLES if str(sample) == name)


def check_both(sample: Sample) -> None:
    """What a rule lets go can go, and results carry what they depend on."""
    check(sample)
    check_dependence(read(sample))


@pytest.mark.parametrize("planted", WRONG, ids=str)
def test_a_planted_wrong_rule_is_caught(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = find(planted.sample)
    check_both(sample)
    monkeypatch.setitem(TABLE, planted.name, planted.rule)
    with pytest.raises(AssertionError):
        check_both(sample)
