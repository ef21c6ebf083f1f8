"""surgeon: cut the least useful filters out of a PyTorch model, and prove that the cut is right."""

import logging

from surgeon import finegrained
from surgeon.channels import ChannelGraph, Group, Pin, channel_graph
from surgeon.checkpoint import load, save
from surgeon.criteria import Scores, score, score_all
from surgeon.errors import (
    BudgetError,
    BusyError,
    CheckpointError,
    ConstantError,
    DivergenceError,
    ExportError,
    HealingError,
    InexactError,
    InexactExportError,
    InputError,
    ModelError,
    NothingToCutError,
    PlanError,
    ProcessError,
    ScoreError,
    SelectionError,
    SurgeonError,
    TuningError,
    VerificationError,
)
from surgeon.experiments import Compared, Experiment, compare
from surgeon.exporting import Exported, export
from surgeon.healing import LayerHealing, heal, settle
from surgeon.iteration import PrunedAndTuned, prune_and_tune
from surgeon.pages import write_report
from surgeon.planning import Plan, make_plan
from surgeon.pruning import Result, prune
from surgeon.report import Report
from surgeon.rewriting import rewrite
from surgeon.streaming import Streamed, load_shards, prune_shards
from surgeon.sweeps import Sensitivity, sensitivity
from surgeon.tracing import Inputs, Trace, trace
from surgeon.trainer import Trained, train
from surgeon.tuning import GroupPenalty, ScalePenalty, Tuned, Validation, evaluate, rewrite_optimizer, tune
from surgeon.verification import Check, verify

__version__ = "0.1.0"

logging.getLogger("surgeon").addHandler(logging.NullHandler())

__all__ = [
    "BudgetError", "BusyError", "ChannelGraph", "Check", "CheckpointError", "Compared", "ConstantError",
    "DivergenceError", "Experiment", "ExportError", "Exported", "Group", "GroupPenalty", "HealingError",
    "InexactError", "InexactExportError", "InputError", "Inputs", "LayerHealing", "ModelError", "NothingToCutError",
    "Pin", "Plan", "PlanError", "ProcessError", "PrunedAndTuned", "Report", "Result", "ScalePenalty", "ScoreError",
    "Scores", "SelectionError", "Sensitivity", "Streamed", "SurgeonError", "Trace", "Trained", "Tuned", "TuningError",
    "Validation", "VerificationError", "channel_graph", "compare", "evaluate", "export", "finegrained", "heal", "load",
    "load_shards", "make_plan", "prune", "prune_and_tune", "prune_shards", "rewrite", "rewrite_optimizer", "save",
    "score", "score_all", "sensitivity", "settle", "trace", "train", "tune", "verify", "write_report",
]  # fmt: skip
