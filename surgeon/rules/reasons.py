"""Why channels stay: the whole set of reasons that a user can read."""

from __future__ import annotations

from torch import fx

from surgeon.tracing import operator_name

#: The model's results keep their places.
OUTPUT = "output"
#: The user asked for it.
IGNORED = "ignored"
#: No step leaves a channel in every part that needs one.
EMPTY = "would empty the layer"
#: Nothing is known of what arrives there.
UNREACHED = "not reached by the example inputs"
#: Nothing is known of how its weights are used.
UNKNOWN = "used in a way that isn't known"
#: Other code may read it, in train mode or with other arguments.
UNREAD = "its result isn't read"
#: Whole numbers can't be ranked.
NOT_FLOAT = "not a float weight"

#: A tensor that the model makes for itself can't be written with its weights.
NOT_STORED = "a tensor that isn't among the stored weights"


def without_rule(name: str) -> str:
    """The operator `name` isn't in the table."""
    return f"operator without rule {name}"


def failed_rule(name: str) -> str:
    """The rule of the operator `name` can't take this call."""
    return f"operator {name}: its rule failed"


def closed(kind: str) -> str:
    """A result of this type is an iterator, a generator, a closure: it may go on computing when the forward is over."""
    return f"a result of type {kind}, which may compute more than was recorded"


def beside(layer: str) -> str:
    """As wide as a layer that the recorded data didn't lead to: other data may bring these channels there."""
    return f"as wide as {layer}, which other data may reach: pass example inputs that do"


def mixes(node: fx.Node) -> str:
    """What the call makes of one channel depends on others, or on which of them is which."""
    return f"mixes channels in {operator_name(node)}"


def constant(node: fx.Node) -> str:
    """Something of a fixed size meets the channels at this line: a number in the program, an input, a constant."""
    site = node.meta.get("site")
    return f"constant in {(site.source or site.path or 'the forward') if site is not None else 'the forward'}"
