"""Products: layers as matrix products. Where they are in a recording, what they multiply, what their weights are."""

from surgeon.products.finding import Product, find_products, operand_of
from surgeon.products.moments import Moments
from surgeon.products.parts import MOVES, Part, find_part, is_fixed_norm, moved, norm_scale, norm_shift
from surgeon.products.rows import Convolution, Form, Linear
from surgeon.products.walk import Walk

__all__ = [
    "MOVES", "Convolution", "Form", "Linear", "Moments", "Part", "Product", "Walk", "find_part", "find_products",
    "is_fixed_norm", "moved", "norm_scale", "norm_shift", "operand_of",
]  # fmt: skip
