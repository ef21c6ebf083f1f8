"""The oracle itself, against cuts made by hand: what is right passes, what is wrong doesn't."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.blocks.norms import ChannelMean, ChannelsFirstNorm, LayerNorm2d
from tests.networks import redraw
from tests.oracle import OracleError, compare

KEEP = torch.tensor([0, 2, 5, 6])  # of 8 channels; two in each half, for group norm
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Sandwich(nn.Module):
    """Convolution, something per channel, convolution."""

    def __init__(self, middle: nn.Module, after: int = 8) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Conv2d(3, 8, 3), middle, nn.Conv2d(after, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(torch.sigmoid(self.middle(torch.sigmoid(self.first(x)))))
        return y


def cut(dense: Sandwich, small: Sandwich, order: Tensor = KEEP) -> dict[str, Tensor]:
    """Fill `small` from `dense` by hand: `KEEP` of the middle's channels, consumed in `order`."""
    sources = {}
    tensors = dict(small.named_parameters()) | dict(small.named_buffers())
    for name, tensor in [*dense.named_parameters(), *dense.named_buffers()]:
        index = torch.arange(tensor.numel()).view(tensor.shape)
        if name == "last.weight" and dense.last.in_channels == 8:
            index = index[:, order]
        elif name.startswith(("first", "middle")) and tensor.ndim and tensor.shape[0] == 8:
            index = index[KEEP]
        sources[name] = index.flatten()
        tensors[name].data = tensor.detach().flatten()[sources[name]].view(index.shape).clone()
    return sources


MIDDLES: dict[str, Callable[[int], nn.Module]] = {
    "identity": lambda width: nn.Identity(),
    "batch": nn.BatchNorm2d,
    "instance": lambda width: nn.InstanceNorm2d(width, affine=True),
    "layer": LayerNorm2d,
    "layer by hand": ChannelsFirstNorm,
    "group": lambda width: nn.GroupNorm(2, width),
    "depth-wise": lambda width: nn.Conv2d(width, width, 3, groups=width),
}


def pair(kind: str) -> tuple[Sandwich, Sandwich]:
    """A dense model and the empty shell of its cut."""
    dense = redraw(Sandwich(MIDDLES[kind](8)).double(), 1).eval()
    small = Sandwich(MIDDLES[kind](4), 4).double().eval()
    assert isinstance(dense, Sandwich)
    return dense, small


@pytest.mark.parametrize("kind", MIDDLES)
def test_a_right_cut_passes(kind: str) -> None:
    dense, small = pair(kind)
    sources = cut(dense, small)
    verdict = compare(dense, small, sources.__getitem__, X)
    assert verdict.error < 1e-13
    assert verdict.effect > 1e-3
    assert verdict.removed >= 4 * 27 + 4 + 4 * 45


@pytest.mark.parametrize("kind", MIDDLES)
def test_a_rolled_index_is_caught(kind: str) -> None:
    dense, small = pair(kind)
    sources = cut(dense, small, KEEP.roll(1))
    with pytest.raises(OracleError, match="differ"):
        compare(dense, small, sources.__getitem__, X)


def test_another_channel_is_caught() -> None:
    dense, small = pair("batch")
    sources = cut(dense, small, torch.tensor([0, 2, 5, 7]))
    with pytest.raises(OracleError, match="differ"):
        compare(dense, small, sources.__getitem__, X)


def test_a_weight_that_changed_is_caught() -> None:
    dense, small = pair("batch")
    sources = cut(dense, small)
    small.last.weight.data[0, 0, 0, 0] += 1e-6
    with pytest.raises(OracleError, match="differ"):
        compare(dense, small, sources.__getitem__, X)


def test_a_mean_over_channels_sees_the_kept_ones() -> None:
    dense = redraw(Sandwich(ChannelMean(8), 1).double(), 1).eval()
    small = Sandwich(ChannelMean(4), 1).double().eval()
    assert isinstance(dense, Sandwich)
    sources = cut(dense, small)
    assert compare(dense, small, sources.__getitem__, X).error < 1e-13


def test_the_dense_model_stays_as_it_was() -> None:
    dense, small = pair("layer")
    before = copy.deepcopy(dense.state_dict())
    compare(dense, small, cut(dense, small).__getitem__, X)
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense.state_dict().items())


def test_a_lost_tie_is_caught() -> None:
    dense = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).double()
    small = copy.deepcopy(dense)
    dense[1].weight = dense[0].weight
    with pytest.raises(OracleError, match="no longer tied"):
        compare(dense, small, lambda name: torch.arange(16), torch.randn(2, 4).double())
