"""Tensors with many zeros or few values as a few bytes, and back to the bit.

A sparse tensor becomes one bit per element and the values that are there; a tensor of few values becomes one symbol
per element and the list of values. Bits and symbols are packed and then entropy-coded as a zlib stream (RFC 1950), by
Huffman codes alone or with runs, whichever is smaller: within some 1 % of the entropy of independent symbols (5 % where
95 % are zero), with nothing but the standard library, and with a checksum.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surgeon.errors import CheckpointError

__all__ = ["MOST_VALUES", "Coded", "Form", "bits_of", "check_total", "decode", "encode", "read_form"]

#: A tensor with more distinct values than this isn't stored by them.
MOST_VALUES = 2**16

#: Types of numbers that are coded, as safetensors and torch call them, and integers of the same size.
_TYPES: Mapping[str, tuple[torch.dtype, torch.dtype]] = {
    "F64": (torch.float64, torch.int64),
    "F32": (torch.float32, torch.int32),
    "F16": (torch.float16, torch.int16),
    "BF16": (torch.bfloat16, torch.int16),
}
_NAMES = {kind: name for name, (kind, _) in _TYPES.items()}
#: The stored tensors of each form, by what stands behind the "#" in their names; the bytes first.
_PARTS = {"sparse": ("mask", "values"), "shared": ("index", "codebook")}
_WIDTHS = (1, 2, 4, 8, 16)
_MOST_ELEMENTS = 2**40
#: A file may unpack to this much, whatever its size is, and beyond that to so many times its size.
_ALWAYS, _MOST_TIMES = 2**26, 10_000
_Ints = NDArray[Any]


@dataclass(frozen=True)
class Form:
    """How a tensor is stored.

    Attributes
    ----------
    kind:
        ``"sparse"`` (one bit per element, and the values that are there) or ``"shared"`` (one symbol per element, and
        what each stands for).
    shape, dtype:
        Of the tensor; the type as safetensors calls it.
    """

    kind: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def elements(self) -> int:
        """How many the tensor has."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """What the tensor takes in memory."""
        return self.elements * _TYPES[self.dtype][0].itemsize

    def parts(self, name: str) -> tuple[str, str]:
        """Names under which the parts of the tensor called `name` are stored: the bytes, and the numbers."""
        code, numbers = _PARTS[self.kind]
        return f"{name}#{code}", f"{name}#{numbers}"

    def to_json(self) -> dict[str, Any]:
        """What the header says; :func:`read_form` reads it."""
        return {"kind": self.kind, "shape": list(self.shape), "dtype": self.dtype}


@dataclass(frozen=True)
class Coded:
    """A stored tensor: its form, the entropy-coded bytes ``(B,)`` uint8 and the numbers ``(V,)`` in its own type."""

    form: Form
    code: Tensor
    numbers: Tensor

    @property
    def bytes(self) -> int:
        """What it takes in a file."""
        return self.code.numel() + self.numbers.numel() * self.numbers.element_size()


# ---------------------------------------------------------------- there


def bits_of(tensor: Tensor) -> Tensor:
    """The same memory as integers: equal where floats are equal to the bit, 0 for +0.0 only."""
    return tensor.view(_TYPES[_NAMES[tensor.dtype]][1])


def encode(tensor: Tensor, kind: str | None = None) -> Coded | None:
    """A tensor in the form of that kind; by default in the smallest one, None where that is its plain bytes.

    None as well where it has no elements, holds NaN or isn't of real floating-point numbers. Zero is +0.0: a -0.0 is
    a value of its own, for the tensor must come back to the bit.
    """
    plain = tensor.detach().cpu().contiguous()
    if plain.dtype not in _NAMES or not plain.numel() or bool(plain.isnan().any()):
        return None
    bits = bits_of(plain.flatten()).numpy()
    if kind is not None:
        return _ENCODERS[kind](plain, bits)
    found = [coded for make in _ENCODERS.values() if (coded := make(plain, bits)) is not None]
    best = min(found, key=lambda coded: coded.bytes)
    return best if best.bytes < plain.numel() * plain.element_size() else None


def _sparse(tensor: Tensor, bits: _Ints) -> Coded:
    there = bits != 0
    return _coded("sparse", tensor, np.packbits(there), bits[there])


def _shared(tensor: Tensor, bits: _Ints) -> Coded | None:
    start = bits[: 2 * MOST_VALUES]  # enough to tell a dense tensor without sorting all of it
    if len(np.unique(start)) > MOST_VALUES:
        return None
    values, symbols = np.unique(bits, return_inverse=True)
    if len(values) > MOST_VALUES:
        return None
    return _coded("shared", tensor, _packed(symbols.reshape(-1), _width(len(values))), values)


_ENCODERS: Mapping[str, Callable[[Tensor, _Ints], Coded | None]] = {"sparse": _sparse, "shared": _shared}


def _coded(kind: str, tensor: Tensor, code: _Ints, numbers: _Ints) -> Coded:
    form = Form(kind, tuple(tensor.shape), _NAMES[tensor.dtype])
    coded = np.frombuffer(bytearray(_deflated(code.tobytes())), dtype=np.uint8)
    return Coded(form, torch.from_numpy(coded), torch.from_numpy(numbers.copy()).view(tensor.dtype))


def _width(count: int) -> int:
    """Bits of a symbol for so many values: a width that divides a byte, or whole bytes, so that bytes repeat."""
    return next(width for width in _WIDTHS if 2**width >= count)


def _packed(symbols: _Ints, width: int) -> _Ints:
    if width >= 8:
        return symbols.astype(f"<u{width // 8}")
    each = 8 // width
    padded = np.zeros(-(-len(symbols) // each) * each, dtype=np.uint8)
    padded[: len(symbols)] = symbols
    found: _Ints = np.bitwise_or.reduce(padded.reshape(-1, each) << _shifts(width), axis=1)
    return found


def _shifts(width: int) -> _Ints:
    return np.arange(0, 8, width, dtype=np.uint8)


def _deflated(data: bytes) -> bytes:
    huffman = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_HUFFMAN_ONLY)
    return min(huffman.compress(data) + huffman.flush(), zlib.compress(data, 6), key=len)


# ---------------------------------------------------------------- and back


def read_form(name: str, fields: Any, stored: Mapping[str, tuple[tuple[int, ...], str]]) -> Form:
    """Check what a header says of a coded tensor against the stored parts; nothing is allocated.

    Parameters
    ----------
    stored:
        Shape and type of each tensor of the file.

    Raises
    ------
    CheckpointError
        With what is wrong.
    """
    if not isinstance(fields, dict) or set(fields) != {"kind", "shape", "dtype"}:
        raise CheckpointError(f"the form of {name!r} is {str(fields)[:80]}, expected kind, shape and dtype")
    kind, shape, dtype = fields["kind"], fields["shape"], fields["dtype"]
    if not isinstance(kind, str) or kind not in _PARTS or not isinstance(dtype, str) or dtype not in _TYPES:
        raise CheckpointError(f"{name!r} is {str(kind)[:80]!r} of {str(dtype)[:80]!r}, which this surgeon can't read")
    if not isinstance(shape, list) or not all(type(size) is int and 0 < size <= _MOST_ELEMENTS for size in shape):
        raise CheckpointError(f"the shape of {name!r} is {str(shape)[:80]}, expected a list of sizes")
    form = Form(kind, tuple(shape), dtype)
    if len(shape) > 64 or form.elements > _MOST_ELEMENTS:
        raise CheckpointError(f"{name!r} is said to have {form.elements} elements")
    for part, wanted in zip(form.parts(name), ("U8", dtype), strict=True):
        sizes, kept_as = stored.get(part, ((), "nothing"))
        if kept_as != wanted or len(sizes) != 1:
            raise CheckpointError(f"{part!r} holds {kept_as} of shape {list(sizes)}, expected a row of {wanted}")
    return form


def check_total(forms: Mapping[str, Form], file_bytes: int) -> None:
    """Refuse a file that would take absurdly more memory than it is long.

    Raises
    ------
    CheckpointError
        If it would.
    """
    total = sum(form.bytes for form in forms.values())
    if total > max(_ALWAYS, _MOST_TIMES * file_bytes):
        raise CheckpointError(
            f"{file_bytes} bytes are said to unpack to {total}, more than {_MOST_TIMES} times as many"
        )


def decode(coded: Coded) -> Tensor:
    """The tensor that :func:`encode` was given, in its shape and type.

    Raises
    ------
    CheckpointError
        If the bytes are damaged, or don't fit the form.
    """
    form, numbers = coded.form, coded.numbers.contiguous()
    values = bits_of(numbers).numpy()
    read = _read_sparse if form.kind == "sparse" else _read_shared
    result = torch.from_numpy(read(form, coded.code.numpy().tobytes(), values)).view(numbers.dtype)
    if bool(result.isnan().any()):
        raise CheckpointError("a coded tensor holds NaN")
    return result.view(form.shape)


def _read_sparse(form: Form, code: bytes, values: _Ints) -> _Ints:
    packed = _inflated(code, -(-form.elements // 8))
    flags = np.unpackbits(np.frombuffer(packed, dtype=np.uint8))
    there = flags[: form.elements].astype(bool)
    if flags[form.elements :].any() or int(there.sum()) != len(values):
        raise CheckpointError(f"{len(values)} values are stored where {int(flags.sum())} should be")
    result = np.zeros(form.elements, dtype=values.dtype)
    result[there] = values
    return result


def _read_shared(form: Form, code: bytes, values: _Ints) -> _Ints:
    if not 0 < len(values) <= MOST_VALUES:
        raise CheckpointError(f"{len(values)} values are shared, expected 1 to {MOST_VALUES}")
    width = _width(len(values))
    each = max(1, 8 // width)
    size = -(-form.elements // each) * max(1, width // 8)
    data = np.frombuffer(_inflated(code, size), dtype=f"<u{max(1, width // 8)}")
    symbols = data if width >= 8 else ((data[:, None] >> _shifts(width)) & (2**width - 1)).reshape(-1)
    if symbols[form.elements :].any() or int(symbols.max()) >= len(values):
        raise CheckpointError(f"a symbol is beyond the {len(values)} shared values")
    result: _Ints = values[symbols[: form.elements]]
    return result


def _inflated(code: bytes, size: int) -> bytes:
    """Exactly `size` bytes; no more are ever made."""
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(code, size + 1)
    except zlib.error as problem:
        raise CheckpointError(f"the coded bytes are damaged: {problem}") from problem
    if len(data) != size or not stream.eof or stream.unused_data:
        raise CheckpointError(f"the coded bytes make {len(data)} bytes or more, expected {size}")
    return data
