"""Do two and four processes come to what one does? ResNet-20 on CIFAR-10, trained weights, gloo, one thread each.

Scores of each criterion that looks at data, on 160 training images in batches of 16; a cut to half of the MACs and the
least-squares healing of it; validation on 1000 test images; 50 steps of training of the cut network in batches of 32,
without augmentation, in double precision (in single precision 50 steps of this network blow rounding up to 0.09 in the
loss). What one process says stands against two and four: the largest differences, relative to the
largest number of each tensor.

    python benchmarks/processes.py             # some ten minutes on two cores
    python benchmarks/processes.py --quick     # two processes alone
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from common import ROOT, Table, arguments, cifar10, output_path, pick_device, run_main, say, trained
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, TensorDataset

import surgeon
from surgeon.tuning import evaluate

CRITERIA = ("taylor", "taylor-gate", "taylor-weight", "fisher", "obs", "auto")
RANKED, BATCH, TRAINED, TRAIN_BATCH, STEPS, JUDGED = 160, 16, 320, 32, 50, 1000


def main() -> int:
    """Run the work in one process, then in more, and compare."""
    parser = arguments("One process against several.", "processes")
    parser.add_argument("--worker", nargs=3, metavar=("FOLDER", "RANK", "SIZE"), help="one process's work")
    options = parser.parse_args()
    if options.worker:
        worked(Path(options.worker[0]), int(options.worker[1]), int(options.worker[2]))
        return 0
    settings = {"ranked": RANKED, "batch": BATCH, "train_batch": TRAIN_BATCH, "steps": STEPS, "judged": JUDGED}
    table = Table.open(output_path(options), settings, pick_device(options), fresh=options.fresh)
    with tempfile.TemporaryDirectory() as made:
        for size in (1, 2) if options.quick else (1, 2, 4):
            spawned(Path(made), size)
            if size > 1:
                table.put(str(size), compared(Path(made), size))
                say(f"{size}: {json.dumps(table.rows[str(size)])}")
    return 0


def spawned(folder: Path, size: int) -> None:
    """Run the work in so many processes."""
    script = str(ROOT / "benchmarks" / "processes.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    commands = [[sys.executable, script, "--worker", str(folder), str(rank), str(size)] for rank in range(size)]
    started = [subprocess.Popen(command, env=environment) for command in commands]
    assert [process.wait() for process in started] == [0] * size


def worked(folder: Path, rank: int, size: int) -> None:
    """The work of one process, written down."""
    torch.set_num_threads(1)
    if size > 1:
        limit = datetime.timedelta(minutes=20)
        dist.init_process_group("gloo", f"file://{folder}/meeting-{size}", limit, rank=rank, world_size=size)
    device = torch.device("cpu")
    model, stats = trained("resnet20-cifar10", device)
    images = cifar10("train", stats, device, torch.arange(RANKED + TRAINED))
    pixels, labels = images.inputs, images.targets
    ranked = images.take(torch.arange(RANKED)).batches(BATCH)
    graph = surgeon.channel_graph(surgeon.trace(model, pixels[:2]))
    scores = surgeon.score_all(graph, CRITERIA, ranked)
    cut = surgeon.prune(model, pixels[:2], max_macs=0.5, criterion="fisher", dataloader=ranked, heal="lstsq")
    tensors = {f"scores/{name}": torch.from_numpy(found.raw) for name, found in scores.items()}
    tensors |= {f"healed/{name}": tensor.clone() for name, tensor in cut.model.state_dict().items()}
    judged = cifar10("test", stats, device, torch.arange(JUDGED))
    seen = evaluate(cut.model, DataLoader(TensorDataset(judged.inputs, judged.targets), 128))
    loader = DataLoader(TensorDataset(pixels[RANKED:].double(), labels[RANKED:]), TRAIN_BATCH, shuffle=True)
    epochs = STEPS * TRAIN_BATCH // TRAINED
    tuned = surgeon.tune(cut.model.double(), loader, epochs=epochs, lr=0.01, schedule="constant", device="cpu")
    facts = {
        "plan": cut.plan.to_json(), "loss": seen.loss, "accuracy": seen.accuracy,
        "losses": [epoch.train_loss for epoch in tuned.history],
    }  # fmt: skip
    save_file(tensors, folder / f"{rank}-of-{size}.safetensors")
    (folder / f"{rank}-of-{size}.json").write_text(json.dumps(facts))


def compared(folder: Path, size: int) -> dict[str, Any]:
    """How far the processes are from one, and from each other."""
    one, facts = _read(folder, 0, 1)
    found = [_read(folder, rank, size) for rank in range(size)]
    far = dict.fromkeys(("scores", "healed"), 0.0)
    for name, tensor in one.items():
        part, scale = name.partition("/")[0], max(float(tensor.double().abs().max()), 1e-12)
        far[part] = max(far[part], *(float((t[name].double() - tensor.double()).abs().max()) / scale for t, _ in found))
    losses = [abs(a - b) for _, other in found for a, b in zip(other["losses"], facts["losses"], strict=True)]
    return {
        "same_plan": all(other["plan"] == facts["plan"] for _, other in found),
        "scores": far["scores"], "healed": far["healed"], "train_loss": max(losses),
        "val_loss": max(abs(other["loss"] - facts["loss"]) for _, other in found),
        "same_accuracy": all(other["accuracy"] == facts["accuracy"] for _, other in found),
        "same_bits": all(torch.equal(found[0][0][name], t[name]) for t, _ in found for name in one),
    }  # fmt: skip


def _read(folder: Path, rank: int, size: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    stem = folder / f"{rank}-of-{size}"
    return load_file(stem.with_suffix(".safetensors")), json.loads(stem.with_suffix(".json").read_text())


if __name__ == "__main__":
    run_main(main)
