"""Do compact files come back to the bit? Random tensors of 1 to 10 million weights, masked, shared, constant, zero.

Each tensor becomes the weight of a linear layer, is masked or shared, packed into a file, loaded from it (plain, and
with masks and codebooks in place), and compared bit by bit. The same tensor with one NaN must be refused. Sizes are
log-uniform, and the largest of each kind is the bound itself; the small ones come first. Written every ten rows to
``benchmarks/results/packing.json``; a second run goes on where the first stopped.

    python benchmarks/packing.py --threads 1              # 200 tensors, some minutes
    python benchmarks/packing.py --quick                  # 20 tensors up to 100,000 weights
"""

from __future__ import annotations

import math
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import Table, arguments, output_path, pick_device, run_main, say, source_digest
from torch import Tensor, nn

import surgeon
from surgeon import finegrained

KINDS = ("masked", "shared", "masked and shared", "constant", "zero")
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
DTYPES = (torch.float32, torch.float32, torch.float16, torch.bfloat16, torch.float64)


def main() -> int:
    """Take every tensor there and back."""
    parser = arguments("Round trips of compact files.", "packing")
    parser.add_argument("--count", type=int, default=200, help="tensors")
    parser.add_argument("--largest", type=int, default=10_000_000, help="weights")
    options = parser.parse_args()
    if options.quick:
        options.count, options.largest = 20, 100_000
    settings = {"count": options.count, "largest": options.largest}
    table = Table.open(output_path(options), settings, pick_device(options), fresh=options.fresh, mixed=True)
    for number in sorted(range(options.count), key=lambda number: size_of(number, options.largest)):
        if str(number) in table.rows:
            continue
        table.rows[str(number)] = row = trip(number, options.largest) | {"source": source_digest()}
        if len(table.rows) % 10 == 0:
            write(table)
        say(f"{number}: {row}")
    write(table)
    rows = table.rows.values()
    say(f"{sum(row['same'] for row in rows)} of {len(rows)} are the same to the bit")
    return 0 if all(row["same"] and row["nan_refused"] for row in rows) else 1


def write(table: Table) -> None:
    """The table, with its sum."""
    table.facts["nan_refused"] = sum(row["nan_refused"] for row in table.rows.values())
    table.write()


def size_of(number: int, largest: int) -> int:
    """Each kind once with the largest size and once with a single weight; log-uniform after that."""
    if number < 2 * len(KINDS):
        return largest if number < len(KINDS) else 1
    return round(math.exp(random.Random(number).uniform(0, math.log(largest))))


def trip(number: int, largest: int) -> dict[str, Any]:
    """One tensor there and back."""
    generator = torch.Generator().manual_seed(number)
    kind = KINDS[number % len(KINDS)]
    weights = size_of(number, largest)
    dtype = DTYPES[number // len(KINDS) % len(DTYPES)]
    k = int(torch.randint(2, 9, (1,), generator=generator))
    values = (0.05 * torch.randn(1, weights, generator=generator)).to(dtype)
    values = torch.full_like(values, 0.25 * (kind == "constant")) if kind in ("constant", "zero") else values
    start = time.process_time()
    found = back(treated(kind, values, k), dtype, weights)
    seconds = round(time.process_time() - start, 2)
    refused = nan_refused(kind, values, k)
    return (
        {"kind": kind, "weights": weights, "dtype": str(dtype), "k": k}
        | found
        | {"nan_refused": refused, "cpu_s": seconds}
    )


def layer(values: Tensor) -> nn.Module:
    """The tensor as a layer's weight."""
    model = nn.Sequential(nn.Linear(values.shape[1], 1, bias=False, device="meta", dtype=values.dtype))
    model[0].weight = nn.Parameter(values.clone())
    return model


def treated(kind: str, values: Tensor, k: int) -> nn.Module:
    """Masked, shared, or both."""
    model = layer(values)
    if "masked" in kind:
        finegrained.sparsify(model, 0.8)
    if "shared" in kind:
        finegrained.share(model, k)
    return model


def back(model: nn.Module, dtype: torch.dtype, weights: int) -> dict[str, Any]:
    """Sizes, and whether both ways to open the file give the same bits."""
    wanted = finegrained.plain_copy(model).get_parameter("0.weight").detach()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "one.safetensors"
        finegrained.pack(path, model)

        def factory() -> nn.Module:
            return layer(torch.zeros(1, weights, dtype=dtype))

        opened = [surgeon.load(path, factory), finegrained.plain_copy(finegrained.unpack(path, factory))]
        found = [one.get_parameter("0.weight").detach() for one in opened]
        same = all(
            torch.equal(one.view(INTEGERS[dtype.itemsize]), wanted.view(INTEGERS[dtype.itemsize])) for one in found
        )
        size = path.stat().st_size
    return {"same": same, "file_bytes": size, "plain_bytes": weights * wanted.element_size()}


def nan_refused(kind: str, values: Tensor, k: int) -> bool:
    """Whether the same tensor with a NaN in its middle is refused."""
    broken = values.clone()
    broken[0, values.shape[1] // 2] = math.nan
    try:
        model = treated(kind, broken, k)
        with tempfile.TemporaryDirectory() as folder:
            finegrained.pack(Path(folder) / "one.safetensors", model)
    except surgeon.SurgeonError:
        return True
    return False


if __name__ == "__main__":
    run_main(main)
