"""``surgeon prune``: cut a model down to a budget, check it, save it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..cuts import SAMPLES, SAMPLES_WITH_DATA, Options
from ..files import amount, amounts, check_outputs, ratios, step, there
from ..options import (
    DATA,
    MODELS,
    file_factory_option,
    ignore_option,
    image_size_option,
    refuse_of_cifar,
    refuse_of_files,
    refuse_typed,
    scope_option,
    seed_option,
)
from ..several import joined
from ..training_options import split_training, training_names, training_options

#: Several processes share the work.
SEVERAL = True
#: Options that only a run with --epochs looks at, and that only one without it does.
_TRAINS = (training_names() - {"data_root"}) | {"train_batch_size", "rewind", "teacher_weight", "temperature"}
_ONE_CUT = {"latency_batch_size"}


@click.command(name="prune", short_help="Cut filters out of a model, check the result, save it.")
@click.option(
    "--model",
    required=True,
    callback=there,
    metavar="MODEL",
    help=f"{MODELS}.",
)
@file_factory_option
@click.option("--filters", type=int, metavar="N", help="Remove this many convolution filters.")
@click.option(
    "--ratio",
    callback=ratios,
    metavar="R",
    help="Remove this share of the channels, such as 0.5; 0.2,0.4,0.5: after each of three --steps.",
)
@click.option(
    "--max-macs",
    callback=amounts,
    metavar="AMOUNT",
    help="Keep within: 50%, 0.5, or a count such as 2G (1 multiply-add is 1); 80%,60%: after each of two --steps.",
)
@click.option(
    "--max-params", callback=amounts, metavar="AMOUNT", help="Keep within: 50%, 0.5, or a count such as 5M; or a list."
)
@click.option(
    "--max-activations",
    callback=amount,
    metavar="AMOUNT",
    help="Keep within: share or count of the numbers in all tensors that one forward makes.",
)
@click.option(
    "--max-latency",
    metavar="TIME",
    help="Keep within: 60% of the dense model's time, or 12ms; measured here, and corrected until it holds.",
)
@click.option(
    "--latency-batch-size",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Images at a time that time is measured at; MACs are then of so many.",
)
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads.  [default: torch's own choice]")
@scope_option
@click.option(
    "--criterion",
    default="taylor",
    show_default=True,
    metavar="NAME",
    help="auto, taylor, magnitude, random, ...: an unknown name lists them all.",
)
@click.option(
    "--round-to",
    callback=step,
    metavar="N|auto",
    help="Kept widths are multiples of this; auto: of this device's channel step, cut where the time goes.",
)
@click.option(
    "--min-channels",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Every group keeps at least this many.",
)
@ignore_option
@click.option(
    "--unit",
    multiple=True,
    metavar="LAYER",
    help="Layer (name or glob) that stays as it is, with all that enters and leaves it; repeatable.",
)
@click.option(
    "--weights",
    metavar="DEFAULT|none|FILE",
    help="Pretrained, random, or a state dict (safetensors or torch). Without it: pretrained if they can be "
    "reached, else random under a warning.",
)
@click.option(
    "--data",
    type=click.Path(),
    metavar=DATA,
    help="Images to rank on, as DIR/CLASS/*.jpg. Without it: crops of two photographs.",
)
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    metavar="N",
    help=f"Images to rank on.  [default: {SAMPLES_WITH_DATA} with --data, else {SAMPLES}]",
)
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=8, show_default=True, metavar="N", help="Images at a time."
)
@click.option(
    "--micro-batch",
    type=click.IntRange(min=1),
    metavar="N",
    help="Rank with so many images in memory at once; the scores are those of whole batches.",
)
@image_size_option
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File to write.  [default: MODEL-pruned.safetensors]",
)
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="cpu, cuda, cuda:1, ...")
@seed_option("Makes a run repeatable.")
@click.option("--verify/--no-verify", default=True, show_default=True, help="Prove that the cut was right.")
@click.option(
    "--heal",
    type=click.Choice(["none", "bn", "bias", "gram", "lstsq"]),
    default="none",
    show_default=True,
    help="Recover accuracy on the images, without labels and without training; lstsq recovers most.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="So many cuts: rank and heal anew in each. --filters N is per step, any other budget is what all reach; "
    "--lr R,R,... gives one rate for each.",
)
@click.option(
    "--schedule",
    type=click.Choice(["linear", "cubic", "equal-ratio", "one-shot", "per-step"]),
    help="How far each of the steps goes: per-step removes --filters N in every one, the others reach the budget at "
    "the last.  [default: per-step for --filters, else linear]",
)
@click.option(
    "--epochs",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Fine-tune so long after each step, on --data.",
)
@click.option(
    "--final-epochs", type=click.IntRange(min=0), default=0, show_default=True, metavar="N", help="More after the last."
)
@click.option(
    "--train-batch-size",
    type=click.IntRange(min=2),
    default=128,
    show_default=True,
    metavar="N",
    help="Images at a time in training.",
)
@training_options
@click.option(
    "--rewind",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="After each cut go on from these weights of the dense model (surgeon train --keep-epoch); needs --epochs.",
)
@click.option(
    "--teacher-weight",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    metavar="R",
    help="Share of the training loss that asks for what the dense model says; 0.9 behind --heal, 0: none.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0, min_open=True),
    default=4.0,
    show_default=True,
    metavar="T",
    help="Divides the scores of both for that; above 1 the classes that are less likely count more.",
)
@click.option("--strict", is_flag=True, help="Refuse what would else be a warning: broken images, layers left whole.")
@click.option(
    "--as-graph",
    is_flag=True,
    help="Make it a torch.fx graph first: widths written into the forward are rewritten, and the file opens without "
    "the model's class.",
)
@click.option(
    "--report", type=click.Path(path_type=Path), metavar="FILE", help="Write an HTML page that shows what was done."
)
@click.option("--dry-run", is_flag=True, help="Show the plan and what it would give; write no model (a --report is).")
@click.option("--json", "as_json", is_flag=True, help="The report and the plan as JSON on standard output.")
def command(**options: Any) -> None:
    """Cut filters out of a model, check the result and save it.

    Say how much with --filters alone, --ratio alone, or any of --max-macs, --max-params, --max-activations and
    --max-latency. With --epochs it trains after each of the --steps, each of which removes --filters N; what is
    interrupted then goes on with --resume.

    Example: surgeon prune --model vgg16_bn --filters 512
    """
    own, training = split_training(options)
    chosen = Options(**own, training=training)
    if chosen.epochs or chosen.final_epochs:
        refuse_typed(_ONE_CUT, "for one cut: leave --epochs out")
        if not chosen.teacher_weight:
            refuse_typed(["temperature"], "for what the dense model teaches: give --teacher-weight R")
    else:
        refuse_typed(_TRAINS, "for cuts with training between: give --epochs N")
    refuse_of_files([chosen.model, chosen.rewind])
    refuse_of_cifar(chosen.data)
    run(chosen)


def run(options: Options) -> None:
    """The whole command."""
    options.check()
    with joined():
        _run(options)


def _run(options: Options) -> None:
    target = None if options.dry_run else options.target
    check_outputs([target, options.report], [options.model, options.rewind], folder=options.folder)
    if options.in_all is not None:
        from ..output import say

        say(options.in_all)
    if options.epochs or options.final_epochs:
        from .. import stepwise

        asked = {**vars(options), **options.training, "folder": options.folder}
        stepwise.run(asked, options.budget, options.target)
        return
    from .. import onecut

    onecut.run(options)
