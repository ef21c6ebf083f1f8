"""``surgeon shards``: cut a model that doesn't fit in memory, from safetensors shards to shards."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..options import ignore_option, one_cut_options, refuse_typed, scope_option, seed_option

if TYPE_CHECKING:
    import surgeon


@click.command(name="shards", short_help="Cut a model that is larger than memory, shard by shard.")
@click.option("--model", required=True, metavar="package.module:factory", help="A callable that makes the dense model.")
@click.option(
    "--weights",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder with model.safetensors.index.json and its shards, or model.safetensors.",
)
@click.option(
    "--output", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Folder to make for the cut ones."
)
@one_cut_options
@click.option(
    "--tokens",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    metavar="N",
    help="Length of the text that the model is recorded and checked with (input_ids and attention_mask).",
)
@click.option("--inputs", metavar="package.module:function", help="Gives what the model takes, in place of --tokens.")
@click.option(
    "--criterion", default="magnitude", show_default=True, metavar="NAME", help="One that looks at weights alone."
)
@scope_option
@click.option("--round-to", type=click.IntRange(min=1), metavar="N", help="Kept widths are multiples of this.")
@ignore_option
@seed_option("For everything that draws.")
@click.option("--verify/--no-verify", default=True, show_default=True, help="Check the cut at every node.")
@click.option("--json", "as_json", is_flag=True, help="The report and the plan as JSON on standard output.")
def command(**options: Any) -> None:
    """Cut a model whose weights are never in memory as a whole: one tensor at a time is read, cut and written.

    Example: surgeon shards --model decoder:make --weights llama/ --max-params 70% --output llama-small/
    """
    if options["ratio"] is None and options["max_params"] is None and options["max_macs"] is None:
        raise click.UsageError("say how much: --ratio R, --max-params AMOUNT or --max-macs AMOUNT")
    if options["inputs"] is not None:
        refuse_typed(["tokens"], "for text: leave --inputs out")
    run(options)


def run(options: dict[str, Any]) -> None:
    """The whole command."""
    from surgeon.streaming import prune_shards

    from ..factories import called, import_factory
    from ..output import Watch

    budget = {name: options[name] for name in ("ratio", "max_params", "max_macs") if options[name] is not None}
    with Watch() as watch:
        result = prune_shards(
            partial(called, options["model"], import_factory(options["model"]), {}),
            _inputs(options),
            options["weights"],
            options["output"],
            criterion=options["criterion"],
            scope=options["scope"],
            round_to=options["round_to"],
            ignored_layers=options["ignore"],
            verify=options["verify"],
            seed=options["seed"],
            progress=watch,
            **budget,
        )
    _show(options, result)


def _inputs(options: dict[str, Any]) -> Any:
    import torch

    import surgeon

    from ..factories import import_factory, result_of

    if (name := options["inputs"]) is not None:
        return result_of(name, import_factory(name, "--inputs"), {}, "--inputs")
    tokens = torch.zeros(1, options["tokens"], dtype=torch.long)
    return surgeon.Inputs((), {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})


def _show(options: dict[str, Any], result: surgeon.streaming.Streamed) -> None:
    import json

    from ..output import emit_json, percent_change, reasons, say, table

    report = result.report
    if options["as_json"]:
        plan = json.loads(result.plan.to_json())
        emit_json({"report": report.to_dict(), "plan": plan, "output": str(result.folder), "left_out": result.left_out})
    counts = {"MACs (1 multiply-add = 1)": "macs", "parameters": "params", "bytes": "bytes"}
    rows = []
    for name, key in counts.items():
        before, after = (getattr(report, f"{key}_{when}") for when in ("before", "after"))
        rows.append((name, f"{before:,}", f"{after:,}", percent_change(before, after)))
    table(f"{options['model']}, cut", ("", "before", "after", "change"), rows)
    reasons([{"layer": p.layer, "reason": p.reason, "source": p.source} for p in report.pinned])
    for name in result.left_out:
        say(f"not written, since the model doesn't have it: {name}")
    check = report.check
    say("check: none" if check is None else f"check: {check.status} ({check.nodes} places compared)")
    say(f"written: {result.folder}; surgeon.load_shards({str(result.folder)!r}, factory) opens it")
