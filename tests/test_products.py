"""Layers as matrix products: rows of inputs times the weight are the layer's own outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.products import Walk, find_products
from tests.networks import redraw

WIDTHS = (6, 4)  # of the inputs and outputs; both divisible by two groups

CONVOLUTIONS: dict[str, tuple[Callable[..., nn.Module], int, dict[str, Any]]] = {
    "1d": (nn.Conv1d, 1, {"kernel_size": 3}),
    "2d": (nn.Conv2d, 2, {"kernel_size": 3}),
    "3d": (nn.Conv3d, 3, {"kernel_size": 2}),
    "oblong": (nn.Conv2d, 2, {"kernel_size": (3, 2), "padding": (1, 0), "stride": (1, 2)}),
    "strided": (nn.Conv2d, 2, {"kernel_size": 3, "stride": 2, "padding": 1}),
    "padded by name": (nn.Conv2d, 2, {"kernel_size": 3, "padding": "same"}),
    "dilated": (nn.Conv2d, 2, {"kernel_size": 2, "dilation": 2, "padding": 2, "stride": 3}),
    "reflecting": (nn.Conv2d, 2, {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"}),
    "grouped": (nn.Conv2d, 2, {"kernel_size": 3, "groups": 2}),
    "grouped 1d": (nn.Conv1d, 1, {"kernel_size": 4, "groups": 2, "stride": 2, "padding": 3}),
    "transposed": (nn.ConvTranspose2d, 2, {"kernel_size": 3}),
    "transposed 1d": (nn.ConvTranspose1d, 1, {"kernel_size": 2, "stride": 3}),
    "transposed 3d": (nn.ConvTranspose3d, 3, {"kernel_size": 2, "stride": 2}),
    "transposed, all at once": (
        nn.ConvTranspose2d,
        2,
        {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1, "dilation": (1, 2), "groups": 2},
    ),
}


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def check(layer: nn.Module, x: Tensor) -> None:
    """Every product of the layer, on its real operand, gives the rows of its real result."""
    redraw(layer.double(), 0).eval()
    trace = surgeon.trace(layer, x)
    products = list(find_products(trace))
    assert products
    for product in products:
        walk = Walk(trace, {})
        walk.run_until(product.node.name, including=False)
        operand = walk.value(product.operand.name)
        walk.run_until(product.node.name, including=True)
        result = walk.value(product.node.name)
        every = torch.arange(product.form.count(result))
        weight = product.form.matrix(product.weight.of(trace.tensors))
        found = product.form.inputs(operand, every) @ weight
        if product.bias is not None:
            found = found + product.bias.of(trace.tensors).view(len(weight), 1, -1)
        torch.testing.assert_close(found, product.form.outputs(result, every), rtol=1e-10, atol=1e-10)
        some = every[1::3]
        torch.testing.assert_close(product.form.inputs(operand, some), product.form.inputs(operand, every)[:, some])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_rows_times_weight_are_a_convolutions_outputs(kind: str, bias: bool) -> None:
    make, dims, options = CONVOLUTIONS[kind]
    check(make(*WIDTHS, bias=bias, **options), drawn(3, WIDTHS[0], *(7, 6, 5)[:dims]))


@pytest.mark.parametrize("make", [nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d])
@pytest.mark.parametrize("outputs", [6, 12])
def test_depthwise_convolutions(make: Any, outputs: int) -> None:
    dims = int(make.__name__[-2])
    check(make(6, outputs, 3, stride=2, padding=1, groups=6), drawn(2, 6, *(5, 6, 5)[:dims]))


@pytest.mark.parametrize("shape", [(4, 6), (2, 5, 6), (2, 3, 5, 6)])
@pytest.mark.parametrize("bias", [True, False])
def test_rows_times_weight_are_a_linear_layers_outputs(shape: tuple[int, ...], bias: bool) -> None:
    check(nn.Linear(6, 4, bias=bias), drawn(*shape))


class Attention(nn.Module):
    """Its queries are made by a slice of ``in_proj_weight``, keys and values by another."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Any:
        return self.attention(x, x.flip(1), x.flip(1), need_weights=False)[0]


def test_slices_of_one_parameter() -> None:
    check(Attention(), drawn(2, 5, 8))
    parts = [product.weight for product in find_products(surgeon.trace(Attention().double().eval(), drawn(2, 5, 8)))]
    assert sum(part.name == "attention.in_proj_weight" for part in parts) > 1


def test_no_rows_are_no_trouble() -> None:
    for make, dims, options in CONVOLUTIONS.values():
        layer = redraw(make(*WIDTHS, **options).double(), 0)
        x = drawn(2, WIDTHS[0], *(7, 6, 5)[:dims])
        (product,) = find_products(surgeon.trace(layer, x))
        nothing = torch.arange(0)
        groups, inputs, outputs = product.form.matrix(product.weight.index).shape
        assert product.form.outputs(layer(x), nothing).shape == (groups, 0, outputs)
        if options.get("padding_mode") is None:
            assert product.form.inputs(x, nothing).shape == (groups, 0, inputs)


def test_a_walk_goes_back_and_takes_up_new_weights() -> None:
    model = redraw(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).double(), 0).eval()
    x = drawn(5, 4)
    trace = surgeon.trace(model, x)
    shared = {name: tensor.detach() for name, tensor in model.named_parameters()}
    walk = Walk(trace, shared)
    last = list(find_products(trace))[-1].node.name
    start = walk.mark()
    walk.run_until(last, including=True)
    torch.testing.assert_close(walk.value(last), model(x))
    shared["0.weight"], shared["2.weight"] = shared["0.weight"] * 2, shared["2.weight"] * 3
    walk.back(start)
    walk.run_until(last, including=False)
    shared["2.bias"] = shared["2.bias"] + 1  # waits behind nothing yet
    walk.refresh()
    walk.run_until(last, including=True)
    expected = torch.func.functional_call(model, shared, (x,))
    torch.testing.assert_close(walk.value(last), expected)


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.weight).abs()


def test_weights_that_are_no_real_numbers_are_no_products() -> None:
    assert not list(find_products(surgeon.trace(Complex().eval(), torch.randn(2, 4, dtype=torch.complex64))))
