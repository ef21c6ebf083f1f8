"""Each difficulty on its own: exact, and what must be cut is cut, what must stay stays."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import surgeon
from surgeon.rewriting import fit
from tests.networks import redraw
from tests.oracle import compare
from tests.zoo import ZOO


def build(name: str) -> nn.Module:
    """The network `name` with healthy weights, float64, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return redraw(ZOO[name]().double(), 0).eval()


@pytest.mark.parametrize("name", ZOO)
def test_exact_and_as_declared(name: str) -> None:
    model, inputs = build(name), ZOO[name].example()
    result = surgeon.prune(model, inputs, ratio=0.5, scope="local", criterion="random")
    verdict = compare(model, result.model, fit(model, result.plan, inputs).source, *inputs)
    assert verdict.removed > 0
    assert result.report.check is not None
    assert result.report.check.status == "passed", result.report.check
    rows = {row.name: row for row in result.report.layers}
    whole = [layer for layer in ZOO[name].cuts if rows[layer].after >= rows[layer].before]
    assert not whole, f"kept all their filters: {whole}; pinned: {result.report.pinned}"
    lost = [layer for layer in ZOO[name].keeps if layer in rows and rows[layer].after < rows[layer].before]
    assert not lost, f"lost filters: {lost}"


@pytest.mark.parametrize("name", ZOO)
def test_the_zoo_itself_runs(name: str) -> None:
    model = build(name)
    layers = dict(model.named_modules())
    assert all(layer in layers for layer in (*ZOO[name].cuts, *ZOO[name].keeps))
    assert isinstance(model(*ZOO[name].example()), torch.Tensor | dict)


@pytest.mark.parametrize("ratio", [0.2, 0.8])
@pytest.mark.parametrize("name", ZOO)
def test_exact_at_other_ratios_over_all_groups(name: str, ratio: float) -> None:
    model, inputs = build(name), ZOO[name].example()
    result = surgeon.prune(model, inputs, ratio=ratio, scope="global", criterion="random", seed=3)
    compare(model, result.model, fit(model, result.plan, inputs).source, *inputs)
