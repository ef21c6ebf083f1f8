"""The exceptions that surgeon raises.

Every one of them subclasses both :class:`SurgeonError` and the built-in that a caller would
expect, so ``except ValueError`` works for somebody who has never heard of this package.
A message names the place (layer and source line), what came, what was expected and the next step.
"""

from __future__ import annotations

from typing import ClassVar


class SurgeonError(Exception):
    """Base of every error that surgeon raises on purpose.

    `failed` says whose it is: False where what was asked for or given can't be used, True where the work itself was
    begun and failed. It is the exit code of the command line: 2 and 1.
    """

    failed: ClassVar[bool] = False


class ModelError(SurgeonError, TypeError):
    """The object passed as a model can't be traced at all (ScriptModule, quantised, lazy...)."""


class InputError(SurgeonError, ValueError):
    """Example inputs or a data source that can't be used."""


class BudgetError(SurgeonError, ValueError):
    """The amount asked for is contradictory, malformed or out of reach."""


class SelectionError(SurgeonError, ValueError):
    """A layer name, glob, criterion or other choice names nothing."""


class NothingToCutError(SurgeonError, ValueError):
    """No channel of the model may be removed; the message says why, layer by layer."""


class ScoreError(SurgeonError, ValueError):
    """A criterion could not be computed (no data, a loss that is not finite)."""


class PlanError(SurgeonError, ValueError):
    """A plan that doesn't fit the model it is applied to."""


class ConstantError(PlanError):
    """The model's own forward doesn't follow the new widths (a constant on the cut axis)."""


class VerificationError(SurgeonError, ArithmeticError):
    """The cut model differs from the dense one with the removed channels silenced."""

    failed = True


class InexactError(NothingToCutError, VerificationError):
    """The check found a cut that differs, and without the channels there the budget can't be kept, or nothing goes."""


class HealingError(SurgeonError, ValueError):
    """Healing can't begin: an unknown level, no data, or models that don't belong together."""


class CheckpointError(SurgeonError, ValueError):
    """A file that is damaged, forged, or belongs to another model."""


class BusyError(SurgeonError, RuntimeError):
    """A folder in which another run is at work."""


class ExportError(SurgeonError, ValueError):
    """A model that can't be written in a format, or whose outputs tell nothing of what was written."""


class InexactExportError(ExportError):
    """What was written doesn't run, or computes something else than the model; it was not kept."""

    failed = True


class TuningError(SurgeonError, ValueError):
    """Training that can't be done as asked: an option, or the data."""


class DivergenceError(TuningError, ArithmeticError):
    """The loss of a training run is not finite any more."""

    failed = True


class ProcessError(SurgeonError, RuntimeError):
    """Several processes that were to work as one: another one failed or was lost, or they were given different work."""

    failed = True
