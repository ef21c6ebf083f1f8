"""Which calls of a recording are products with a weight of the model's own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from surgeon.products.parts import Part, find_part, mean_behind
from surgeon.products.rows import Convolution, Form, Linear
from surgeon.tracing import Trace, operator_name

#: Where the operand, the weight and the bias stand among the arguments.
_PRODUCTS = {"addmm": (1, 2, 0), "mm": (0, 1, None), "convolution": (0, 1, 2)}


@dataclass(frozen=True, eq=False)
class Product:
    """One call.

    Attributes
    ----------
    node:
        The call, and `operand` what is multiplied by the weight.
    form:
        How it is a matrix product.
    weight, bias:
        The elements that they are made of.
    mean:
        Where there is no bias: the running mean of the batch norm right behind, from which an intercept can be taken.
    """

    node: fx.Node
    operand: fx.Node
    form: Form
    weight: Part
    bias: Part | None
    mean: Part | None

    @property
    def key(self) -> tuple[str, bytes]:
        """Equal for calls that share their weight."""
        return self.weight.name, self.weight.index.numpy().tobytes()


def operand_of(node: fx.Node) -> Any:
    """What a call multiplies by its weight; None of other calls."""
    places = _PRODUCTS.get(operator_name(node))
    return None if places is None else _argument(node, places[0])


def find_products(trace: Trace) -> Iterator[Product]:
    """The products of a recording, in the order in which they run; passes in train mode left out."""
    for node in trace.calls:
        places = _PRODUCTS.get(operator_name(node))
        if places is None or node.meta["extra"]:
            continue
        operand, weight, bias = (_argument(node, place) for place in places)
        part = find_part(weight, trace)
        if not isinstance(operand, fx.Node) or part is None or not _fits(part, trace):
            continue
        form = Convolution.of(part.index.shape, node.args[3:]) if operator_name(node) == "convolution" else Linear()
        mean = None if isinstance(bias, fx.Node) else mean_behind(node, trace)
        yield Product(node, operand, form, part, find_part(bias, trace), mean)


def _fits(part: Part, trace: Trace) -> bool:
    """Whether it can be fitted: real numbers, each of which stands in one place."""
    return trace.tensors[part.name].is_floating_point() and part.index.numel() == len(torch.unique(part.index))


def _argument(node: fx.Node, place: int | None) -> Any:
    return node.args[place] if place is not None and place < len(node.args) else None
