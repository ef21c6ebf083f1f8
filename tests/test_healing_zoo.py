"""Every network of the zoo is healed: no layer gets worse than slicing or a shift, nor does the output."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import surgeon
from surgeon.errors import NothingToCutError
from surgeon.healing import LayerHealing, heal
from surgeon.tracing import Inputs
from tests.test_zoo import build, inputs_of
from tests.zoo import ZOO
from tests.zoo.base import ZooNetwork, draw

SIZES = (16, 16, 5)
#: Time comes first here: another batch size would be another length, and a recurrent layer runs step by step.
STEPWISE = ("LstmTokensFirst",)
#: Whose data chooses the layers that run: all batches have to choose alike.
ROUTED = ("ExpertsByHits", "SparseExperts")
#: Where layers that come nearer need not bring the output nearer: the last one forgets scales, or its weight is the
#: first one's too and stays.
ONLY_LAYERS = ("CosineClassifier", "CosineSimilarity", "Autoencoder")


def drawn(name: str) -> list[Inputs]:
    """Batches of the network's own inputs: larger ones where it takes one tensor; indices are always in range."""
    network, example = ZOO[name], inputs_of(name)
    if name in ROUTED:
        return [example] * len(SIZES)
    if network.example.__func__ is ZooNetwork.example.__func__ and name not in STEPWISE:  # type: ignore[attr-defined]
        shapes = [(size, *network.shape[1:]) for size in SIZES]
        return [Inputs((draw(*s, seed=seed),), example.kwargs) for seed, s in enumerate(shapes)]
    return [example.map(lambda leaf, seed=seed: _like(leaf, seed)) for seed in range(len(SIZES))]  # type: ignore[misc]


def _like(leaf: Tensor, seed: int) -> Tensor:
    """Numbers like these: those that only a table of boxes or an index would hold stay."""
    whole = not leaf.is_floating_point() or bool((leaf == leaf.round()).all())
    return leaf if whole else draw(*leaf.shape, seed=seed)


def error(dense: torch.nn.Module, small: torch.nn.Module, batches: list[Inputs]) -> float:
    """Summed squared difference of all outputs."""
    total = 0.0
    with torch.no_grad():
        for batch in batches:
            pair = (pytree.tree_leaves(model(*batch.args, **batch.kwargs)) for model in (dense, small))
            total += sum(float((a - b).square().sum()) for a, b in zip(*pair, strict=True) if isinstance(a, Tensor))
    return total


@pytest.mark.parametrize("name", ZOO)
def test_nothing_gets_worse(name: str) -> None:
    model, batches = build(name), drawn(name)
    try:
        result = surgeon.prune(
            model, inputs_of(name), ratio=0.5, scope="local", criterion="random", seed=0, verify=False
        )
    except NothingToCutError:
        assert not ZOO[name].cuts
        return
    rows: list[LayerHealing] = []
    before = error(model, result.model, batches)
    heal(model, result.model, result.plan, batches, inputs_of=lambda batch: batch, on_layer=rows.append)
    for row in rows:
        assert 0 <= row.healed <= min(row.sliced, row.shifted)
    assert error(model, result.model, batches) <= before * (1 + 1e-9) or name in ONLY_LAYERS


#: The kinds of layers and readers that healing must know, each in a network that would stay as it was otherwise.
GAINS = (
    "DepthwiseMultiplier", "GroupNormed", "TransposedGroups", "FlattenLinear", "TorchAttention", "EncoderPostNorm",
    "EncoderPreNormGelu", "FusedByAttributes", "FusedChunked", "VisionTransformer", "MlpMixer", "LowRank", "DenseList",
    "LayerNormFirst",
)  # fmt: skip


@pytest.mark.parametrize("name", GAINS)
@pytest.mark.parametrize("last", [1, 5])
def test_what_healing_must_know_gains(name: str, last: int) -> None:
    """Also with a last batch of one example, which is recorded through other calls."""
    model, shape = build(name), ZOO[name].shape[1:]
    result = surgeon.prune(model, inputs_of(name), ratio=0.4, scope="local", criterion="magnitude", verify=False)
    batches = [Inputs((draw(size, *shape, seed=seed),)) for seed, size in enumerate((48, 48, last))]
    unseen = [Inputs((draw(64, *shape, seed=8),))]
    before = error(model, result.model, unseen)
    heal(model, result.model, result.plan, batches, inputs_of=lambda batch: batch)
    assert error(model, result.model, unseen) < 0.8 * before
