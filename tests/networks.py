"""Random networks: one grammar, drawn by hypothesis (`networks`) or by a seed (`sample_network`).

A `Spec` is a small frozen description; `Spec.build` makes the module and `Spec.inputs` its inputs, both
the same on every call. Everything drawn is an integer or one of a list, plainest first, and every sequence of
blocks is legal (a block that needs a divisor gets a 1x1 convolution before it), so examples shrink well.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.blocks import BLOCKS, OPTIONS, Place
from tests.blocks.base import conv
from tests.blocks.ends import FEATURES, HEADS, SECONDS, STEMS, TOKENS, Head, Meet, Stem
from tests.blocks.outlets import CONTEXT, ENTRIES, OUTLETS, Entry, Outlet
from tests.blocks.wraps import STAGES, WRAPS, Wrapped

SIZES = {1: (16,), 2: (8, 8), 3: (4, 4, 4)}  # big enough for two strides, small enough for milliseconds
MAX_BLOCKS = 5
CHANNELS = (4, 24)
VARIANTS = 10**6  # options of the extended grammar's blocks run from 0 to here


@dataclass(frozen=True)
class Part:
    """One block of a network: a name in ``BLOCKS``, a channel count, a variant, and what stands around it."""

    kind: str
    width: int
    option: int
    wrap: str = ""


@dataclass(frozen=True)
class Spec:
    """A whole network: everything that `build` and `inputs` need."""

    dims: int
    batch: int
    stem: str
    width: int
    second: str
    parts: tuple[Part, ...]
    head: str
    seed: int

    def build(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        """The network in eval mode, its weights redrawn so that none is zero."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return redraw(Network(self), self.seed).to(dtype).eval()

    def inputs(self, dtype: torch.dtype = torch.float64) -> tuple[Any, ...]:
        """The arguments: one or two tensors, or both in nested dicts."""
        first, *rest = self.tensors(dtype)
        return ({"image": first, "extra": {"maps": rest}},) if self.second == "nested" else (first, *rest)

    def tensors(self, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
        """One or two tensors: images (N, 3, *size) or tokens (N, T); then what the second input is."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        size = SIZES[self.dims]
        if self.stem == "embedding":
            first = torch.randint(TOKENS, (self.batch, *size), generator=generator)
        else:
            first = torch.randn(self.batch, 3, *size, generator=generator, dtype=torch.float64).to(dtype)
        vectors = {"film": (FEATURES,), "context": (CONTEXT, FEATURES)}
        shape = (self.batch, *vectors.get(self.second, (2, *size)))
        second = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        return (first, second) if self.second else (first,)

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Spec:
        """The inverse of `to_json`."""
        fields = json.loads(text)
        parts = tuple(Part(**part) for part in fields.pop("parts"))
        return cls(parts=parts, **fields)


class Network(nn.Module):
    """The module of a `Spec`: stem, perhaps a second input, body, head."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.stem = Stem(spec.stem, Place(3, SIZES[spec.dims]), spec.width)
        one = Spec(**{**asdict(spec), "batch": 1, "parts": ()}).tensors(torch.float32)
        place = _arrives(self.stem, one[0])
        self.second = _second(spec, place)
        if self.second is not None:
            place = _arrives(self.second, _zeros(place), one[1])
        self.body = nn.Sequential()
        for part in spec.parts:
            module = _part(part, place)
            place = _arrives(module, _zeros(place))
            self.body.append(module)
        head = Outlet if spec.head in OUTLETS else Head
        self.head = head(spec.head, place, max(2, spec.width // 2))

    def forward(self, x: Any, other: Tensor | None = None) -> Any:
        if isinstance(x, dict):
            (other,) = x["extra"]["maps"]
            x = x["image"]
        x = self.stem(x)
        if self.second is not None:
            x = self.second(x, other)
        return self.head(self.body(x))


def _zeros(place: Place) -> Tensor:
    return torch.zeros(1, place.channels, *place.size)


def _arrives(module: nn.Module, *inputs: Tensor) -> Place:
    """What comes out of `module`; the running statistics of a fresh batch norm don't move in eval mode."""
    with torch.no_grad():
        shape = module.eval()(*inputs).shape
    return Place(shape[1], tuple(shape[2:]))


def _second(spec: Spec, place: Place) -> nn.Module | None:
    if spec.second in ENTRIES:
        return Entry(spec.second, place, max(2, spec.width // 2))
    return Meet(spec.second, place, 2) if spec.second else None


def _part(part: Part, place: Place) -> nn.Module:
    """The block with what stands around it."""
    module = _divisible(part, place)
    if not part.wrap or part.kind in STAGES:
        return module
    return Wrapped(part.wrap, module, place, _arrives(module, _zeros(place)))


def _divisible(part: Part, place: Place) -> nn.Module:
    """The block, behind a 1x1 convolution where its channels have to be divisible."""
    entry = BLOCKS[part.kind]
    fitting = max(entry.divisor, place.channels // entry.divisor * entry.divisor)
    if fitting == place.channels:
        return entry.build(place, part.width, part.option)
    entrance = conv(place, place.channels, fitting, 1)
    return nn.Sequential(entrance, entry.build(Place(fitting, place.size), part.width, part.option))


def redraw(module: nn.Module, seed: int) -> nn.Module:
    """Give every parameter and statistic a healthy random value, in place: nothing zero, nothing exploding.

    Matrices and kernels are normal with variance 2 / fan-in, scales and variances uniform in 0.5 to 1.5, everything
    else normal with standard deviation 0.3.
    """
    generator = torch.Generator().manual_seed(seed)
    scales = _scales(module)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if not tensor.is_floating_point() or not tensor.numel():
                continue
            if name in scales or name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5, generator=generator)
            else:
                wide = tensor.ndim >= 2 and not name.endswith("original0")
                spread = (2.0 * tensor.shape[0] / tensor.numel()) ** 0.5 if wide else 0.3
                tensor.normal_(0.0, min(spread, 1.0), generator=generator)
    return module


@torch.no_grad()
def settled(model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """Give batch norms the statistics of what arrives, in place: else a deep network's rounding errors explode."""

    def settle(layer: Any, given: tuple[Tensor, ...]) -> None:
        values = given[0].transpose(0, 1).flatten(1)
        if values.shape[1] >= FEWEST:
            layer.running_mean.copy_(values.mean(1))
            layer.running_var.copy_(values.var(1).clamp(min=0.1))

    norms = [layer for layer in model.modules() if getattr(layer, "running_var", None) is not None]
    hooks = [layer.register_forward_pre_hook(settle) for layer in norms]
    model(*args, **kwargs)
    for hook in hooks:
        hook.remove()
    return model


#: Values per channel that make a statistic.
FEWEST = 16


def _scales(module: nn.Module) -> set[str]:
    """Names of per-channel scales: one-dimensional weights, and the parameters called gamma or scale."""
    names = set()
    for name, tensor in module.named_parameters():
        last = name.rsplit(".", 1)[-1]
        if (last == "weight" and tensor.ndim == 1) or last in ("gamma", "original0") or last.endswith("scale"):
            names.add(name)
    return names


class _Chooser(Protocol):
    def integer(self, low: int, high: int) -> int: ...
    def pick(self, items: Sequence[str]) -> str: ...


def _compose(choose: _Chooser, extended: bool) -> Spec:
    """The grammar. Dimensions 1 and 3 are rarer than 2."""
    dims = (2, 2, 2, 1, 1, 3)[choose.integer(0, 5)]
    stems = [stem for stem in STEMS if stem != "embedding" or dims == 1]
    stem, width = choose.pick(stems), choose.integer(*CHANNELS)
    # three of five networks have one input
    second = choose.pick((SECONDS[0],) * 6 + SECONDS[1:] + (ENTRIES if extended else ()))
    count = choose.integer(1, MAX_BLOCKS)
    parts = _extended_parts(choose, dims, count) if extended else _basic_parts(choose, dims, count)
    heads = HEADS + OUTLETS if extended else HEADS
    batch, head, seed = choose.integer(1, 3), choose.pick(heads), choose.integer(0, 99)
    return Spec(dims, batch, stem, width, second, parts, head, seed)


def _basic_parts(choose: _Chooser, dims: int, count: int) -> tuple[Part, ...]:
    kinds = [name for name, entry in BLOCKS.items() if dims in entry.dims and not entry.extended]
    return tuple(
        Part(choose.pick(kinds), choose.integer(*CHANNELS), choose.integer(0, OPTIONS - 1)) for _ in range(count)
    )


def _extended_parts(choose: _Chooser, dims: int, count: int) -> tuple[Part, ...]:
    """Blocks beyond convolutional networks as well, two of three times; some change the number of axes."""
    parts = []
    for _ in range(count):
        beyond = choose.integer(0, 2) > 0
        kinds = [name for name, entry in BLOCKS.items() if dims in entry.dims and entry.extended == beyond]
        part = Part(choose.pick(kinds), choose.integer(*CHANNELS), choose.integer(0, VARIANTS - 1), choose.pick(WRAPS))
        parts.append(part)
        dims = STAGES.get(part.kind, dims)
    return tuple(parts)


class _Seeded:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def integer(self, low: int, high: int) -> int:
        return self.random.randint(low, high)

    def pick(self, items: Sequence[str]) -> str:
        return self.random.choice(items)


class _Drawn:
    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw

    def integer(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def pick(self, items: Sequence[str]) -> str:
        return self.draw(st.sampled_from(items))


def sample_network(seed: int, extended: bool = False) -> Spec:
    """The network of `seed`; with `extended`, blocks beyond convolutional networks take part."""
    return _compose(_Seeded(seed), extended)


@st.composite
def networks(draw: st.DrawFn, extended: bool = False) -> Spec:
    """Random networks for hypothesis."""
    return _compose(_Drawn(draw), extended)
