"""The smaller model: the same in everything but its widths, with the dense model's own numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

import surgeon
from surgeon.errors import PlanError
from surgeon.planning import Plan
from surgeon.rewriting import fit
from surgeon.tracing import named_tensors
from tests import factories
from tests.networks import redraw
from tests.test_tracing import Picture
from tests.test_zoo import build
from tests.zoo import ZOO

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def plan_of(model: nn.Module, inputs: Any = X, ratio: float = 0.5) -> Plan:
    graph = surgeon.channel_graph(surgeon.trace(model, inputs))
    return surgeon.make_plan(graph, surgeon.score(graph, "random"), ratio=ratio, scope="local")


def halved(model: nn.Module, inputs: Any = X, *, inplace: bool = False) -> Any:
    return surgeon.rewrite(model, plan_of(model, inputs), inplace=inplace)


# --- the same model


def test_class_names_and_tensor_names_stay() -> None:
    model = factories.Small()
    small = halved(model)
    assert type(small) is factories.Small
    assert list(small.state_dict()) == list(model.state_dict())
    assert [(n, type(m)) for n, m in small.named_modules()] == [(n, type(m)) for n, m in model.named_modules()]
    assert all(type(a) is type(b) for a, b in zip(small.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_types_stay(dtype: torch.dtype) -> None:
    model = factories.Small().to(dtype)
    small = halved(model, X.to(dtype))
    assert {n: t.dtype for n, t in small.state_dict().items()} == {n: t.dtype for n, t in model.state_dict().items()}
    assert small(X.to(dtype)).dtype == dtype


class Volume(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv3d(3, 8, 3), nn.Conv3d(8, 8, 2), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.two(self.one(x)).mean((2, 3, 4)))


@pytest.mark.parametrize(
    ("make", "inputs", "order"),
    [
        (factories.Small, X, torch.channels_last),
        (factories.Small, X, torch.contiguous_format),
        (Volume, torch.randn(1, 3, 5, 5, 5), torch.channels_last_3d),
    ],
    ids=["channels last", "plain", "channels last 3d"],
)
def test_memory_format_stays(make: Callable[[], nn.Module], inputs: Tensor, order: Any) -> None:
    model = make().to(memory_format=order)
    kernels = [p for p in halved(model, inputs).parameters() if p.ndim > 2]
    assert all(p.is_contiguous(memory_format=order) for p in kernels)
    assert all(p.is_contiguous() == (order is torch.contiguous_format) for p in kernels)


def test_frozen_parameters_modes_and_hooks_stay() -> None:
    model = factories.Small().train()
    model.norm.eval()
    model.first.weight.requires_grad_(False)
    calls: list[str] = []
    model.second.register_forward_hook(lambda *_: calls.append("second"))
    small = halved(model)
    assert [m.training for m in small.modules()] == [m.training for m in model.modules()]
    assert [p.requires_grad for p in small.parameters()] == [p.requires_grad for p in model.parameters()]
    calls.clear()  # tracing ran the forward
    small(X)
    assert calls == ["second"]


@pytest.mark.parametrize("inplace", [False, True])
def test_ties_stay(inplace: bool) -> None:
    small = halved(factories.Tied(), inplace=inplace)
    assert small.again.weight is small.once.weight
    assert small.once.weight.shape == (4, 4, 3, 3)


class Holding(nn.Module):
    """Keeps its layers and a parameter in containers of its own besides."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 2)
        self.order = [self.a, self.b]
        self.named = {"norm": self.norm}
        self.scales = (self.norm.weight,)

    def forward(self, x: Tensor) -> Any:
        for layer in self.order:
            x = F.relu(layer(x))
        return self.head((self.named["norm"](x) * self.scales[0].view(-1, 1, 1)).mean((2, 3)))


@pytest.mark.parametrize("inplace", [False, True])
def test_containers_hold_the_models_own_layers(inplace: bool) -> None:
    small = halved(Holding(), inplace=inplace)
    assert small.order[0] is small.a
    assert small.order[1] is small.b
    assert small.named["norm"] is small.norm
    assert small.scales[0] is small.norm.weight


@pytest.mark.parametrize("name", ["PlainChain", "ChannelShuffle", "AttributeWidth", "IndexBuffer", "TiedWeights"])
def test_the_input_model_is_untouched(name: str) -> None:
    model = build(name).train()
    model(*ZOO[name].example()).sum().backward()
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    before = Picture.of(model)
    small = halved(model, ZOO[name].example())
    with torch.no_grad():
        for tensor in named_tensors(small).values():
            tensor.zero_()
    before.must_equal(Picture.of(model))
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(gradient, parameter.grad)  # type: ignore[arg-type]  # both are there


@pytest.mark.parametrize("name", ["PlainChain", "ChannelShuffle", "AttributeWidth", "SplitByAttribute", "WeightNormed"])
def test_in_place_changes_the_very_object(name: str) -> None:
    model, inputs = build(name), ZOO[name].example()
    modules, plan = list(model.modules()), plan_of(model, inputs)
    small = surgeon.rewrite(model, plan)
    assert surgeon.rewrite(model, plan, inplace=True) is model
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert repr(model) == repr(small)
    torch.testing.assert_close(model(*inputs), small(*inputs), rtol=0, atol=0)


def test_in_place_through_a_wrapper_changes_what_is_inside() -> None:
    model = factories.Small()
    wrapped = nn.DataParallel(model)
    assert surgeon.rewrite(wrapped, plan_of(model), inplace=True) is wrapped
    assert model.first.out_channels == 4


def test_a_plan_that_does_not_fit_leaves_the_model() -> None:
    model = factories.Small()
    before = Picture.of(model)
    plan = Plan("Small", {"first": (0, 1), "second": tuple(range(12))})
    with pytest.raises(PlanError):
        surgeon.rewrite(model, plan, X, inplace=True)
    before.must_equal(Picture.of(model))


# --- attributes


class Sandwich(nn.Module):
    """Something per channel between two layers: images (N, C, 6, 6), or tokens with the channels last."""

    def __init__(self, middle: nn.Module, last: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(3, 8) if last else nn.Conv2d(3, 8, 1)
        self.middle = middle
        self.out = nn.Linear(8, 2) if last else nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Any:
        return self.out(torch.tanh(self.middle(torch.tanh(self.first(x)))))


MIDDLES: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "convolution": (lambda: nn.Conv2d(8, 8, 3), {"in_channels": 4, "out_channels": 4, "groups": 1}),
    "grouped": (lambda: nn.Conv2d(8, 8, 3, groups=2), {"in_channels": 4, "out_channels": 4, "groups": 2}),
    "depth-wise": (lambda: nn.Conv2d(8, 8, 3, groups=8), {"in_channels": 4, "out_channels": 4, "groups": 4}),
    "transposed": (lambda: nn.ConvTranspose2d(8, 8, 2), {"in_channels": 4, "out_channels": 4, "groups": 1}),
    "transposed depth-wise": (
        lambda: nn.ConvTranspose2d(8, 8, 2, groups=8),
        {"in_channels": 4, "out_channels": 4, "groups": 4},
    ),
    "batch norm": (lambda: nn.BatchNorm2d(8), {"num_features": 4}),
    "batch norm without weights": (lambda: nn.BatchNorm2d(8, affine=False), {"num_features": 4}),
    "instance norm": (lambda: nn.InstanceNorm2d(8, affine=True), {"num_features": 4}),
    "bare instance norm": (lambda: nn.InstanceNorm2d(8), {"num_features": 4}),
    "group norm": (lambda: nn.GroupNorm(2, 8), {"num_groups": 2, "num_channels": 4}),
    "group norm of one each": (lambda: nn.GroupNorm(8, 8), {"num_groups": 4, "num_channels": 4}),
    "bare group norm": (lambda: nn.GroupNorm(2, 8, affine=False), {"num_groups": 2, "num_channels": 4}),
    "prelu": (lambda: nn.PReLU(8), {"num_parameters": 4}),
    "shared prelu": (nn.PReLU, {"num_parameters": 1}),
}
LAST: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "linear": (lambda: nn.Linear(8, 8), {"in_features": 4, "out_features": 4}),
    "layer norm": (lambda: nn.LayerNorm(8), {"normalized_shape": (4,)}),
    "bare layer norm": (lambda: nn.LayerNorm(8, elementwise_affine=False), {"normalized_shape": (4,)}),
    "rms norm": (lambda: nn.RMSNorm(8), {"normalized_shape": (4,)}),
}


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("kind", [*MIDDLES, *LAST])
def test_width_attributes_follow(kind: str, inplace: bool) -> None:
    make, expected = {**MIDDLES, **LAST}[kind]
    model = Sandwich(make(), kind in LAST)
    inputs = torch.randn(2, 5, 3) if kind in LAST else torch.randn(2, 3, 6, 6)
    small = halved(model, inputs, inplace=inplace)
    assert {name: getattr(small.middle, name) for name in expected} == expected
    assert small(inputs).isfinite().all()


def test_an_embeddings_attributes_follow() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.out = nn.Embedding(20, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Any:
            return self.out(self.table(x))

    small = halved(Tokens(), torch.arange(6).view(2, 3))
    assert (small.table.num_embeddings, small.table.embedding_dim) == (20, 4)
    assert tuple(small.table.weight.shape) == (20, 4)


@pytest.mark.parametrize("inplace", [False, True])
def test_attributes_of_the_users_modules_follow(inplace: bool) -> None:
    small = halved(build("AttributeWidth"), ZOO["AttributeWidth"].example(), inplace=inplace)
    assert small.dim == small.conv.out_channels == 6


def test_other_attributes_stay() -> None:
    model = factories.Small()
    model.note, model.size, model.flag = "eight", 8, True  # type: ignore[assignment]  # a user's own
    small = halved(model)
    assert (small.note, small.size, small.flag) == ("eight", 8, True)


# --- the numbers


@pytest.mark.parametrize("name", ZOO)
def test_every_tensor_is_the_dense_one_at_the_indices(name: str) -> None:
    model, inputs = build(name), ZOO[name].example()
    plan = plan_of(model, inputs)
    fitted, small = fit(model, plan, inputs), named_tensors(surgeon.rewrite(model, plan))
    folded = {owner for fold in fitted.folds for owner, _ in fold.rows}  # attention's scale
    for key, dense in named_tensors(model).items():
        if dense.is_floating_point() and key not in folded:
            assert torch.equal(small[key].flatten(), dense.flatten()[fitted.source(key)]), key


def test_kept_filters_keep_their_order() -> None:
    model = factories.Small()
    plan = Plan("Small", {"first": (0, 3, 7), "second": (11,)})
    small = surgeon.rewrite(model, plan, X)
    kept = [1, 2, 4, 5, 6]
    assert torch.equal(small.get_parameter("first.weight"), model.first.weight[kept])
    assert torch.equal(small.get_parameter("second.weight"), model.second.weight[:11, kept])
    assert torch.equal(small.get_buffer("norm.running_var"), model.norm.running_var[kept])  # type: ignore[index]
    assert torch.equal(small.get_parameter("head.weight"), model.head.weight[:, :11])


# --- a model like any other

WORKING = ["PlainChain", "InPlaceAdd", "ChannelShuffle", "EqualSplit", "FusedAttention", "WeightNormed", "TiedWeights"]


@pytest.mark.parametrize("name", WORKING)
def test_a_pruned_model_trains(name: str) -> None:
    inputs = ZOO[name].example()
    small = halved(redraw(build(name), 1), inputs).train()
    optimiser = torch.optim.SGD(small.parameters(), lr=1e-3, momentum=0.9)
    before = [p.detach().clone() for p in small.parameters()]
    for _ in range(2):
        optimiser.zero_grad()
        small(*inputs).square().mean().backward()
        optimiser.step()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())
    moved = [not torch.equal(p, b) for p, b in zip(small.parameters(), before, strict=True)]
    has_gradient = [bool(p.grad.abs().max() > 1e-9) for p in small.parameters()]  # a bias in front of a norm has none
    assert all(m for m, told in zip(moved, has_gradient, strict=True) if told)
    assert sum(has_gradient) > len(moved) // 2
    assert all(p.isfinite().all() for p in small.parameters())


@pytest.mark.parametrize("name", WORKING)
def test_copies_and_state_dicts(name: str) -> None:
    model, inputs = build(name), ZOO[name].example()
    plan = plan_of(model, inputs)
    small = surgeon.rewrite(model, plan)
    torch.testing.assert_close(copy.deepcopy(small)(*inputs), small(*inputs), rtol=0, atol=0)
    other = surgeon.rewrite(redraw(copy.deepcopy(model), 9), plan, inputs)
    other.load_state_dict(small.state_dict())
    torch.testing.assert_close(other(*inputs), small(*inputs), rtol=0, atol=0)


def test_a_pruned_model_is_symbolically_traced() -> None:
    small = halved(factories.Small().eval())
    torch.testing.assert_close(fx.symbolic_trace(small)(X), small(X))


def test_a_pruned_model_is_exported() -> None:
    small = halved(factories.Small().eval())
    exported: Any = torch.export.export(small, (X,))
    torch.testing.assert_close(exported.module()(X), small(X))


def test_a_pruned_graph_module_is_one() -> None:
    model = fx.symbolic_trace(factories.Small().eval())
    small = halved(model)
    assert isinstance(small, fx.GraphModule)
    assert small.first.out_channels == 4  # type: ignore[union-attr]
    assert small.code == model.code


def test_another_batch_size_and_image_size() -> None:
    small = halved(factories.Small().eval())
    assert small(torch.randn(5, 3, 13, 9)).shape == (5, 5)


class Counted(nn.Conv2d):
    """Copied in a way of its own: it counts its copies."""

    copies = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Counted:
        twin = Counted(self.in_channels, self.out_channels, 3, padding=1)
        memo[id(self)] = twin
        twin.weight, twin.bias = copy.deepcopy(self.weight, memo), copy.deepcopy(self.bias, memo)
        twin.copies = self.copies + 1
        return twin


class Restored(nn.Module):
    """When its state is set it looks at its layers: they must be whole by then."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 3, padding=1)
        self.own = Counted(8, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 2, 1)
        self.shared = {"layer": self.layer, "sizes": [1, 2]}
        self.alias = self.shared

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.seen = self._modules["layer"].out_channels  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        """Three convolutions."""
        return self.head(self.own(self.layer(x)).relu())  # type: ignore[no-any-return]


def test_a_copy_is_what_deepcopy_makes() -> None:
    model = Restored()
    model.layer.register_forward_hook(lambda *_: None)
    small, twin = halved(model), copy.deepcopy(model)
    assert small.seen == twin.seen == 8
    assert small.own.copies >= 1
    assert small.shared is small.alias
    assert small.shared is not model.shared
    assert small.shared["layer"] is small.layer
    assert small.shared["sizes"] is not model.shared["sizes"]
    assert len(small.layer._forward_hooks) == 1
    for ours, theirs, dense in zip(small.modules(), twin.modules(), model.modules(), strict=True):
        assert vars(ours).keys() == vars(theirs).keys()
        held = [name for name, value in vars(dense).items() if isinstance(value, dict)]
        assert all(vars(ours)[name] is not vars(dense)[name] for name in held)
