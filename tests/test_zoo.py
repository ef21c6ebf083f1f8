"""Each difficulty on its own: exact, and what must be cut is cut, what must stay stays."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.rewriting import fit
from tests.networks import redraw
from tests.oracle import compare
from tests.zoo import ZOO
from tests.zoo.base import ZooNetwork, draw


def build(name: str) -> nn.Module:
    """The network `name` with healthy weights, float64, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ZOO[name]().double().eval()
        redraw(network, 0)
        network.prepare()
        return network


def inputs_of(name: str) -> surgeon.Inputs:
    """What the network `name` is called with."""
    return surgeon.Inputs(ZOO[name].example(), ZOO[name].keywords())


def judged(name: str, ratio: float, scope: str, seed: int = 0) -> surgeon.Result:
    """Cut `name`, and let the oracle judge the cut on the example and, where that is one tensor, on a larger batch."""
    model, inputs, network = build(name), inputs_of(name), ZOO[name]
    result = surgeon.prune(model, inputs, ratio=ratio, scope=scope, criterion="random", seed=seed)
    assert result.report.check is not None
    assert result.report.check.status == "passed", result.report.check
    source = fit(model, result.plan, inputs).source
    verdict = compare(model, result.model, source, *inputs.args, **inputs.kwargs)
    assert verdict.removed > 0
    assert verdict.effect > 1e-6, "the outputs don't depend on what was cut"
    if network.example.__func__ is ZooNetwork.example.__func__:  # type: ignore[attr-defined]  # a class method has it
        first, *rest = network.shape
        compare(model, result.model, source, draw(first + 1, *rest, seed=9))
    return result


@pytest.mark.parametrize("name", ZOO)
def test_exact_and_as_declared(name: str) -> None:
    wanted, result = ZOO[name], judged(name, 0.5, "local")
    rows = {row.name: row for row in result.report.layers}
    whole = [layer for layer in wanted.cuts if rows[layer].after >= rows[layer].before]
    assert not whole, f"kept all their filters: {whole}; pinned: {result.report.pinned}"
    lost = [layer for layer in wanted.keeps if layer in rows and rows[layer].after < rows[layer].before]
    assert not lost, f"lost filters: {lost}"
    small = dict(result.model.named_parameters())
    assert {key: tuple(small[key].shape) for key in wanted.shapes} == wanted.shapes
    reasons = {pin.layer: pin.reason for pin in result.report.pinned}
    assert all(words in reasons[layer] for layer, words in wanted.pins.items()), reasons


@pytest.mark.parametrize("name", ZOO)
def test_the_zoo_itself_runs(name: str) -> None:
    model, inputs = build(name), inputs_of(name)
    named = {**dict(model.named_modules()), **dict(model.named_parameters())}
    assert all(layer in named for layer in (*ZOO[name].cuts, *ZOO[name].keeps, *ZOO[name].shapes, *ZOO[name].pins))
    assert isinstance(model(*inputs.args, **inputs.kwargs), Tensor | dict)


@pytest.mark.parametrize("ratio", [0.3, 0.8])
@pytest.mark.parametrize("name", ZOO)
def test_exact_at_other_ratios_over_all_groups(name: str, ratio: float) -> None:
    judged(name, ratio, "global", seed=3)


@pytest.mark.parametrize("name", ["AttentionByAttributes", "AttentionBert", "GroupedRepeated", "LinearAttention"])
def test_where_the_heads_are_too_much_the_embedding_goes(name: str) -> None:
    """A fifth of all channels: the embedding's go one at a time, so a plan exists."""
    judged(name, 0.2, "global", seed=3)


# --- torch's fast path

FAST = {
    "TorchAttention": "_native_multi_head_attention",
    "EncoderPostNorm": "_transformer_encoder_layer_fwd",
    "EncoderPreNormGelu": "_transformer_encoder_layer_fwd",
    "EncoderPostNormGelu": "_transformer_encoder_layer_fwd",
    "EncoderStack": "_transformer_encoder_layer_fwd",
}


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", FAST)
def test_the_fast_path_gives_the_same(name: str, grad: bool) -> None:
    """Cut with and without gradients, then run on torch's fused operators and on plain ones."""
    model, inputs = build(name), inputs_of(name)
    with torch.set_grad_enabled(grad):
        small: Any = surgeon.prune(model, inputs, ratio=0.5, scope="local", criterion="random").model.eval()
    operator = FAST[name]
    with torch.no_grad(), mock.patch.object(torch, operator, wraps=getattr(torch, operator)) as fused:
        fast = small(*inputs.args)
        assert fused.call_count > 0
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        torch.testing.assert_close(fast, small(*inputs.args), rtol=1e-10, atol=1e-10)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
