"""Coded tensors: back to the bit, small, and nothing believed of a file."""

from __future__ import annotations

import math
import zlib
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from surgeon.checkpoint.coding import MOST_VALUES, Coded, Form, check_total, decode, encode, read_form
from surgeon.errors import CheckpointError

INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16}
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def same_bits(one: Tensor, other: Tensor) -> bool:
    kind = INTEGERS[one.itemsize]
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one.view(kind), other.view(kind))


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Any shape; few values, many zeros, constant, all zero, dense; now and then an infinity or a -0.0."""
    shape = draw(st.lists(st.integers(1, 7), min_size=0, max_size=4)) or [draw(st.integers(1, 700))]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    values = torch.randn(shape, generator=generator)
    kind = draw(st.sampled_from(["dense", "sparse", "few", "constant", "zero", "few and sparse"]))
    if "few" in kind:
        values = (values * draw(st.integers(1, 40))).round() / 8
    if "sparse" in kind:
        values = values * (torch.rand(shape, generator=generator) < draw(st.floats(0, 1)))  # makes -0.0 as well
    if kind in ("constant", "zero"):
        values = torch.full(shape, 0.0 if kind == "zero" else -1.25)
    if draw(st.integers(0, 9)) == 0:
        values.view(-1)[0] = draw(st.sampled_from([math.inf, -math.inf, -0.0, 1e-40]))
    return values.to(draw(st.sampled_from(DTYPES)))


@given(tensors(), st.sampled_from([None, "sparse", "shared"]))
@settings(deadline=None, max_examples=200)
def test_every_tensor_comes_back_to_the_bit(tensor: Tensor, kind: str | None) -> None:
    coded = encode(tensor, kind)
    if coded is None:
        assert kind is None
        return
    assert kind in (None, coded.form.kind)
    assert same_bits(decode(coded), tensor)
    if kind is None:
        assert coded.bytes < tensor.numel() * tensor.itemsize


@pytest.mark.parametrize("kind", ["sparse", "shared"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_minus_zero_is_no_zero(dtype: torch.dtype, kind: str) -> None:
    tensor = torch.tensor([1.0, -0.0, 0.0] * 40, dtype=dtype)
    coded = encode(tensor, kind)
    assert coded is not None
    assert same_bits(decode(coded), tensor)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16, 17, 256, 257, 5000, MOST_VALUES])
def test_symbols_of_every_width(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    tensor = torch.randint(count, (count + 1001,), generator=generator).float()
    tensor[:count] = torch.arange(count).float()
    coded = encode(tensor, "shared")
    assert coded is not None
    assert len(coded.numbers) == count
    assert same_bits(decode(coded), tensor)


def test_too_many_values_are_not_shared() -> None:
    assert encode(torch.arange(MOST_VALUES + 1).float(), "shared") is None
    assert encode(torch.cat([torch.zeros(3 * MOST_VALUES), torch.arange(MOST_VALUES + 1).float()]), "shared") is None


@pytest.mark.parametrize(("density", "most"), [(0.5, 1.01), (0.3, 1.02), (0.1, 1.03), (0.05, 1.07)])
def test_a_mask_takes_little_more_than_its_entropy(density: float, most: float) -> None:
    generator = torch.Generator().manual_seed(0)
    there = torch.rand(400_000, generator=generator) < density
    coded = encode(torch.where(there, torch.randn(400_000, generator=generator), torch.zeros(())))
    assert coded is not None
    entropy = -(density * math.log2(density) + (1 - density) * math.log2(1 - density))
    assert coded.form.kind == "sparse"
    assert 8 * len(coded.code) < most * entropy * 400_000
    assert len(coded.numbers) == int(there.sum())


@pytest.mark.parametrize("count", [4, 9, 13, 35])
def test_indices_take_little_more_than_their_entropy(count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    symbols = (
        (torch.randn(200_000, generator=generator) * count / 6).round().clamp(-(count // 2), count - 1 - count // 2)
    )
    share = (symbols - symbols.min()).long().bincount().double().clamp(min=1) / 200_000
    coded = encode(symbols + 100)
    assert coded is not None
    assert coded.form.kind == "shared"
    assert 8 * len(coded.code) < 1.03 * float(-(share * share.log2()).sum()) * 200_000


@pytest.mark.parametrize(
    "tensor", [torch.tensor([1.0, math.nan]), torch.zeros(0), torch.zeros(9, dtype=torch.int64), torch.zeros(9) + 1j]
)
def test_what_is_not_coded(tensor: Tensor) -> None:
    assert encode(tensor) is None


# ---------------------------------------------------------------- files that lie

GOOD = {"kind": "sparse", "shape": [2, 3], "dtype": "F32"}
STORED = {"w#mask": ((9,), "U8"), "w#values": ((4,), "F32"), "w#index": ((9,), "U8"), "w#codebook": ((2,), "F32")}


def test_a_good_form_is_read() -> None:
    assert read_form("w", GOOD, STORED) == Form("sparse", (2, 3), "F32")
    assert read_form("w", {**GOOD, "kind": "shared"}, STORED).to_json() == {**GOOD, "kind": "shared"}


@pytest.mark.parametrize(
    "fields",
    [
        None,
        [],
        {},
        {**GOOD, "more": 1},
        {**GOOD, "kind": "dense"},
        {**GOOD, "kind": ["sparse"]},
        {**GOOD, "dtype": "I32"},
        {**GOOD, "dtype": {}},
        {**GOOD, "dtype": "F16"},
        {**GOOD, "shape": 6},
        {**GOOD, "shape": [2, -3]},
        {**GOOD, "shape": [2, 0]},
        {**GOOD, "shape": [True, 3]},
        {**GOOD, "shape": [2.0, 3]},
        {**GOOD, "shape": [2**41]},
        {**GOOD, "shape": [2**30, 2**30]},
        {**GOOD, "shape": [1] * 65},
    ],
)
def test_forged_forms_are_refused(fields: Any) -> None:
    with pytest.raises(CheckpointError):
        read_form("w", fields, STORED)


@pytest.mark.parametrize(
    "stored",
    [
        {},
        {**STORED, "w#mask": ((9,), "I8")},
        {**STORED, "w#mask": ((3, 3), "U8")},
        {**STORED, "w#values": ((2, 2), "F32")},
        {**STORED, "w#values": ((4,), "F64")},
    ],
)
def test_forged_parts_are_refused(stored: Any) -> None:
    with pytest.raises(CheckpointError, match="expected a row"):
        read_form("w", GOOD, stored)


def test_a_file_that_would_fill_the_memory_is_refused() -> None:
    check_total({"w": Form("sparse", (2**24,), "F32")}, 100)
    with pytest.raises(CheckpointError, match="times as many"):
        check_total({"w": Form("sparse", (2**24,), "F32"), "v": Form("shared", (2**20,), "F32")}, 100)


def forged(kind: str, code: bytes, numbers: Tensor, shape: tuple[int, ...] = (10,)) -> Coded:
    name = {torch.float32: "F32", torch.float16: "F16"}[numbers.dtype]
    return Coded(Form(kind, shape, name), torch.frombuffer(bytearray(code), dtype=torch.uint8), numbers)


def deflated(*numbers: int) -> bytes:
    return zlib.compress(bytes(numbers))


@pytest.mark.parametrize(
    ("coded", "told"),
    [
        (forged("sparse", b"nonsense", torch.ones(2)), "damaged"),
        (forged("sparse", deflated(0xC0, 0)[:-1], torch.ones(2)), "expected 2"),
        (forged("sparse", deflated(0xC0, 0) + b"x", torch.ones(2)), "expected 2"),
        (forged("sparse", deflated(0xC0), torch.ones(2)), "expected 2"),
        (forged("sparse", deflated(0xC0, 0, 0), torch.ones(2)), "expected 2"),
        (forged("sparse", zlib.compress(bytes(10**6)), torch.ones(2)), "expected 2"),
        (forged("sparse", deflated(0xC0, 0), torch.ones(3)), "3 values are stored where 2"),
        (forged("sparse", deflated(0xC0, 0), torch.ones(1)), "1 values are stored where 2"),
        (forged("sparse", deflated(0xC0, 1), torch.ones(2)), "where 3"),
        (forged("sparse", deflated(0xC0, 0), torch.tensor([1, math.nan])), "NaN"),
        (forged("shared", deflated(0, 0, 3), torch.ones(3)), "beyond the 3"),
        (forged("shared", deflated(0, 0, 0x10), torch.ones(3)), "beyond the 3"),
        (forged("shared", deflated(0, 0), torch.ones(3)), "expected 3"),
        (forged("shared", deflated(0, 0), torch.ones(0)), "0 values are shared"),
        (forged("shared", deflated(0, 0), torch.ones(MOST_VALUES + 1)), "are shared"),
        (forged("shared", deflated(*[7] * 10), torch.ones(17).half()), None),
        (forged("shared", deflated(*[17] * 10), torch.ones(17).half()), "beyond the 17"),
    ],
)
def test_forged_bytes_are_refused(coded: Coded, told: str | None) -> None:
    if told is None:
        assert decode(coded).shape == (10,)
        return
    with pytest.raises(CheckpointError, match=told):
        decode(coded)
