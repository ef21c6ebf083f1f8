"""The library's errors, in the words of the command line: its arguments by the options that set them."""

from __future__ import annotations

import re

import click

from .options import flag_of

#: Arguments of the library that options set under another name.
_OTHERS = {"ignored_layers": "ignore", "units": "unit", "epochs_per_step": "epochs", "dataloader": "data"}
#: Those that messages name without a value. No others: a layer may be called ratio, or output.
_ALONE = r"(?:max_\w+|ignored_layers|units)(?=: | and | exclude )"
#: What an argument is set to in a message, if anything: 'text', or a number; dots are for what the user has to give.
_VALUE = r"=(?:'(?P<text>[^']*)'|(?P<any>\.\.\.)|(?P<bare>[^\s;,:)]*[^\s;,:).]))?"
#: A call is Python, and stays: surgeon.prune(..., forward_loss=...).
_CALL = r"[\w.]+\([^()]*\)"


def by_options(message: str, command: click.Command) -> str:
    """The message with ``--max-macs 50%`` for ``max_macs='50%'``, of the options that the command has."""
    options = {str(param.name): param for param in command.params if isinstance(param, click.Option)}
    options |= {name: options[option] for name, option in _OTHERS.items() if option in options}
    flags = {name: flag_of(option) for name, option in options.items()}
    names = "|".join(map(re.escape, sorted(flags, key=len, reverse=True)))
    if not names:
        return message
    pattern = rf"{_CALL}|(?<![\w./-])(?:(?P<name>{names}){_VALUE}|(?P<alone>{_ALONE}))"

    def spoken(found: re.Match[str]) -> str:
        name = found["name"] or found["alone"]
        if name not in flags:
            return found[0]
        told = _example(options[name]) if found["any"] else found["text"] or found["bare"]
        return flags[name] + (f" {told}" if told else "")

    return re.sub(pattern, spoken, message)


def _example(option: click.Option) -> str:
    """What an option takes, as its help says it: of several things the first."""
    return (option.metavar or "").partition("|")[0]
