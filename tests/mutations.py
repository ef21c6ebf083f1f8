"""Files as an attacker would make them: valid ones, changed at any level; the same number gives the same change."""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Callable
from typing import Any

#: What takes the place of a value.
NASTY: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 255, 2**31 - 1, 2**31, 2**53, 2**63 - 1, 2**63, -(2**63), 10**30, 10**70,
    0.5, -0.0, 1e308, float("nan"), float("inf"), "", " ", "0", "-1", "NaN", "first", "first.weight", "conv", "self",
    "__class__", "__init__", "..", "../../x", "/dev/zero", "os.system", "builtins.eval", "builtins.getattr", "torch",
    "training", "a" * 5000, "\x1b[31m", "\u202e", "\ud800", "F64", "F8_E4M3", "I64", "U8", "float64", "qint8",
    "resnet18", "vit_h_14", "wrn40-4", [], [[]], [0] * 50, [1, 1, 1], list(range(8)), [2**40, 2**40], {}, {"": {}},
    {"a": 1}, {"node": "x"}, {"function": "builtins.getattr"}, {"function": "torch.relu"}, {"torch": "float64"},
    {"device": "cuda"}, {"tuple": [1, 2]}, {"list": []}, {"value": 1}, {"tensor": [1, 1], "dtype": "float32"},
    {"factory": "os:getcwd"}, {"torchvision": "regnet_y_128gf", "kwargs": {}}, {"surgeon": "resnet20"},
    {"torchvision": "fcn_resnet50", "kwargs": {}},
)  # fmt: skip
_Path = tuple[Any, ...]


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """A safetensors file's own header, and the bytes behind it."""
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def join(header: Any, rest: bytes, size: int | None = None) -> bytes:
    """The file again; `size` is what it says of its header's length."""
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", (len(text) if size is None else size) % 2**64) + text + rest


def mutate(data: bytes, rng: random.Random, *, plan: bool = False) -> bytes:
    """A changed copy of a checkpoint, or of a plan's text."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        change = rng.choice(_PLAN if plan else _FILE)
        try:
            data = change(data, rng)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError, struct.error):
            data = _bytes(data, rng)  # an earlier change has left nothing to take apart
    return data


# ---------------------------------------------------------------- values


def paths(value: Any, here: _Path = ()) -> list[_Path]:
    """Where all parts of a JSON value are."""
    found = [here]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        found += paths(part, (*here, key))
    return found


def _at(value: Any, path: _Path) -> Any:
    for key in path:
        value = value[key]
    return value


def change_value(value: Any, rng: random.Random) -> Any:
    """A copy of a JSON value with one part changed."""
    value = copy.deepcopy(value)
    places = paths(value)
    path = rng.choice(places)
    if not path:
        return rng.choice(NASTY)
    holder, key = _at(value, path[:-1]), path[-1]
    way = rng.randrange(9)
    if way < 3:
        holder[key] = rng.choice(NASTY)
    elif way == 3:
        del holder[key]
    elif way == 4:  # another part of the same value
        holder[key] = copy.deepcopy(_at(value, rng.choice(places)))
    elif way == 5:
        holder[key] = _nearby(holder[key], rng)
    elif way == 6:
        holder[key] = _wrapped(holder[key], rng)
    elif isinstance(holder, dict):
        holder[str(rng.choice(NASTY))[:6000]] = holder[key] if way == 7 else holder.pop(key)
    else:
        holder.insert(rng.randrange(len(holder) + 1), copy.deepcopy(holder[key]))
    return value


def _nearby(value: Any, rng: random.Random) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return rng.choice((value + 1, value - 1, -value, value * 2, value * 10**6, value / 2, str(value), [value]))
    if isinstance(value, str):
        place = rng.randrange(len(value) + 1)
        return value[:place] + rng.choice(("", "x", ".", "#", "\0", "_1", "\u00e9")) + value[place + 1 :]
    if isinstance(value, list):
        return rng.choice((value[::-1], value * 2, value[:-1], value + value[:1]))
    return value


def _wrapped(value: Any, rng: random.Random) -> Any:
    for _ in range(rng.choice((1, 2, 70, 500))):
        value = [value] if rng.random() < 0.5 else {"list": value}
    return value


def _text(text: str, rng: random.Random) -> str:
    """JSON that no writer makes: names twice, bare constants, bombs."""
    place = rng.randrange(len(text) + 1)
    bomb = rng.choice(
        ("NaN", "Infinity", "-", "1e999", "9" * 5000, "[" * 5000, '{"a":' * 5000, ",", '"', "\\ud800", "null,", "\x00",
         "[[],[]," * 2000, "[" + "0," * 20000 + "0]", '"surgeon_plan": 1, ', "{}", "\ufeff")
    )  # fmt: skip
    return text[:place] + bomb + text[place + rng.randrange(3) :]


# ---------------------------------------------------------------- files


def _bytes(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if not changed:
            break
        # half of the changes fall into the first bytes, where lengths and names are
        place = rng.randrange(len(changed) if rng.random() < 0.5 else min(len(changed), 64))
        changed[place] = rng.choice(
            (0, 1, 0x7F, 0x80, 0xFF, changed[place] ^ (1 << rng.randrange(8)), rng.randrange(256))
        )
    return bytes(changed)


def _cut(data: bytes, rng: random.Random) -> bytes:
    place = rng.choice((0, 1, 7, 8, 9, rng.randrange(len(data) + 1), max(len(data) - 1, 0)))
    return data[:place]


def _longer(data: bytes, rng: random.Random) -> bytes:
    place, size = rng.randrange(len(data) + 1), rng.choice((1, 8, 100, 10_000))
    return data[:place] + rng.choice((b"\0", b"\xff", b"{", data[:1])) * size + data[place:]


def _moved(data: bytes, rng: random.Random) -> bytes:
    a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    c = rng.randrange(len(data) + 1)
    rest = data[:a] + data[b:]
    return rest[:c] + data[a:b] + rest[c:]


def _in_surgeons_header(data: bytes, rng: random.Random) -> bytes:
    header, rest = split(data)
    fields = json.loads(header["__metadata__"]["surgeon"])
    header["__metadata__"]["surgeon"] = json.dumps(change_value(fields, rng))
    return join(header, rest)


def _in_its_text(data: bytes, rng: random.Random) -> bytes:
    header, rest = split(data)
    header["__metadata__"]["surgeon"] = _text(header["__metadata__"]["surgeon"], rng)
    return join(header, rest)


def _in_safetensors_header(data: bytes, rng: random.Random) -> bytes:
    header, rest = split(data)
    return join(change_value(header, rng), rest)


def _length(data: bytes, rng: random.Random) -> bytes:
    header, rest = split(data)
    size = len(json.dumps(header).encode())
    return join(header, rest, rng.choice((0, 1, size - 1, size + 1, 2 * size, 2**31, 2**32, 2**63, 2**64 - 1, 10**8)))


def _plan_value(data: bytes, rng: random.Random) -> bytes:
    return json.dumps(change_value(json.loads(data), rng)).encode("utf-8", "surrogatepass")


def _plan_text(data: bytes, rng: random.Random) -> bytes:
    return _text(data.decode("utf-8", "surrogatepass"), rng).encode("utf-8", "surrogatepass")


_Change = Callable[[bytes, random.Random], bytes]
_RAW: tuple[_Change, ...] = (_bytes, _cut, _longer, _moved)
_FILE: tuple[_Change, ...] = (
    *_RAW, _in_its_text, _length, _in_safetensors_header, _in_safetensors_header, *[_in_surgeons_header] * 6,
)  # fmt: skip
_PLAN: tuple[_Change, ...] = (*_RAW, _plan_text, *[_plan_value] * 6)
