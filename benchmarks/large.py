"""A Llama-style decoder of 6.7 billion parameters, cut from shards to shards: seconds and peak memory of each stage.

Hidden size 4096, 32 layers of 32 heads, feed-forward 11008, vocabulary 32000, bfloat16: 13.5 GB of weights, drawn at
random from a seed and written as shards of 1 GB first (a decoder's own weights can't be reached from here; what is
measured doesn't depend on the numbers). The cut: L2 magnitude, 70 % of the parameters, the hidden size kept. The check
runs both decoders side by side at every node, on redrawn double-precision weights and on their own, eight tokens, and
compares every tensor written. Peak: resident memory of the process, which does nothing else (`ru_maxrss`).

    python benchmarks/large.py --scratch /somewhere     # needs 24 GB of disk there; half an hour on one core
    python benchmarks/large.py --quick                  # two layers of a narrow one
"""

from __future__ import annotations

import hashlib
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from common import ROOT, MissingError, Table, arguments, output_path, pick_device, run_main, say
from torch import Tensor, nn

import surgeon
from surgeon.streaming import INDEX, prune_shards
from surgeon.streaming.shards import write_shards
from surgeon.streaming.weights import empty_model

SIZES: dict[str, dict[str, Any]] = {
    "7b": {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 11008,
           "vocab_size": 32000},
    "7b-one-layer": {
        "hidden_size": 4096,
        "num_hidden_layers": 1,
        "num_attention_heads": 32,
        "intermediate_size": 11008,
        "vocab_size": 32000,
    },
    "quick": {"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 688,
              "vocab_size": 1000},
}  # fmt: skip
TOKENS, SHARD_BYTES, SHARE = 8, 10**9, {"7b-one-layer": 0.9}


def main() -> int:
    """Make the shards, cut them in a process of its own, put the row down."""
    parser = arguments("Time and memory of a cut from shards to shards.", "large")
    parser.add_argument("--scratch", type=Path, help="folder in which the dense shards stay for the next run")
    parser.add_argument("--size", choices=list(SIZES), default="7b", help="how deep; its memory is that of its widths")
    parser.add_argument("--worker", nargs=2, metavar=("SIZE", "FOLDER"), help="one measurement, printed")
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measured(options.worker[0], Path(options.worker[1]))))
        return 0
    size = "quick" if options.quick else options.size
    table = Table.open(output_path(options), {"tokens": TOKENS}, pick_device(options), fresh=options.fresh)
    if size not in table.rows:
        with tempfile.TemporaryDirectory() if options.scratch is None else nullcontext(options.scratch) as made:
            command = [sys.executable, str(ROOT / "benchmarks" / "large.py"), "--worker", size, str(made)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            table.put(size, json.loads(done.stdout))
    say(json.dumps(table.rows[size], indent=1))
    return 0


def decoder(size: str) -> nn.Module:
    """The decoder, with whatever numbers transformers gives it."""
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError as problem:
        raise MissingError(f"transformers: {problem}") from problem
    config = LlamaConfig(**SIZES[size], dtype="bfloat16", attn_implementation="eager")
    config.use_cache = False
    model: nn.Module = LlamaForCausalLM(config).bfloat16()
    return model


def drawn(name: str, shape: torch.Size) -> Tensor:
    """The weight of that name: normal, 0.02 wide as transformers draws them; scales of norms around 1."""
    generator = torch.Generator().manual_seed(
        int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "big")
    )
    found = torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)
    return found + 1 if len(shape) == 1 else found


def make_shards(size: str, folder: Path) -> int:
    """Write the dense weights; gives their bytes."""
    model, _ = empty_model(lambda: decoder(size))
    shapes = {name: (tensor.shape, torch.bfloat16) for name, tensor in model.named_parameters()}
    files, place = {}, 0
    for name, (shape, _) in shapes.items():
        files[name] = f"model-{place // SHARD_BYTES + 1:05d}.safetensors"
        place += 2 * shape.numel()
    return write_shards(folder, files, shapes, lambda name: drawn(name, shapes[name][0]))


def measured(size: str, folder: Path) -> dict[str, Any]:
    """Seconds of the stages, and the process's peak of resident memory after each, in MB."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    dense = folder / f"dense-{size}"
    if not (dense / INDEX).exists():
        dense.mkdir(exist_ok=True)
        written = make_shards(size, dense)
        say(f"{written / 1e9:.1f} GB of dense weights written in {time.perf_counter() - start:.0f} s")
    peaks: dict[str, int] = {}

    def progress(stage: str, done: int, total: int) -> None:
        if total == 1 and done == 1:
            peaks[stage] = _peak()
            say(f"{stage}: peak {peaks[stage]} MB after {time.perf_counter() - start:.0f} s")

    tokens = torch.arange(TOKENS)[None] + 1
    inputs = surgeon.Inputs((), {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})
    result = prune_shards(
        lambda: decoder(size), inputs, dense, folder / "small", max_params=SHARE.get(size, 0.7),
        ignored_layers=["model.embed_tokens"], progress=progress,
    )  # fmt: skip
    report, check = result.report, result.report.check
    assert check is not None
    shutil.rmtree(folder / "small")
    seconds = {stage: round(seconds, 1) for stage, seconds in report.seconds.items()}
    return {
        "params": report.params_before, "params_after": report.params_after,
        "bytes": report.bytes_before, "bytes_after": report.bytes_after,
        "seconds": seconds, "cpu_seconds": round(time.process_time()), "peak_mb": peaks,
        "check": check.status, "nodes": check.nodes, "error": check.error, "own_error": check.own_error,
        "widths": sorted({row.after for row in report.layers if row.name.endswith("gate_proj")}),
    }  # fmt: skip


def _peak() -> int:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


if __name__ == "__main__":
    run_main(main)
