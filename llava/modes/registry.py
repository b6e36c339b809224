"""The description of a mode, and the registry of all modes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from llava.model_shape import ModelShape


@dataclass(frozen=True)
class Option:
    """Command-line option `name` that sets the mode's `flag`; `parse` is its argparse type, None for a switch."""

    name: str
    flag: str
    parse: Callable[[str], Any] | None
    help: str

    def add_to(self, parser: argparse._ActionsContainer) -> None:
        """Add the option to a parser or a group of it."""
        if self.parse is None:
            parser.add_argument(self.name, action="store_const", const=True, help=self.help)
        else:
            parser.add_argument(self.name, type=self.parse, help=self.help)

    def value(self, options: argparse.Namespace) -> Any:
        """Value on the command line; None where it was left out."""
        return _value(options, self.name)


@dataclass(frozen=True)
class Choice:
    """A command line's choice of a mode: by a switch, or by a `value` of an option that several modes share."""

    option: str
    help: str
    value: str | None = None

    def is_made(self, options: argparse.Namespace) -> bool:
        """Whether the command line chooses so."""
        return bool(_value(options, self.option) == (self.value or True))


@dataclass(frozen=True)
class Mode:
    """One way to answer.

    - `technique`: printed when answering begins.
    - `defaults`: every flag of the mode, for a model of that shape.
    - `switch`: the flag that turns pruning on; "" in a mode that prunes nothing. `fixed`: other flags that make the
      mode what it is. Neither can be set by a caller.
    - `reset`: the method of a `HimapLlavaModel` that drops what answers in this mode leave; "" where nothing is left.
    - `system_length`: the flag for the number of tokens before the image, "" where there is none.
    - `draws`: whether, with these flags, answering about an image draws one of its tokens at random.
    - `original_keys`: settings as the original programs' results name them, and the flags that they are.
    - `programs`: the programs that offer the mode, and how their command lines choose it. `options` set its flags.
    """

    name: str
    technique: str
    defaults: Callable[[ModelShape], dict[str, Any]]
    switch: str = ""
    fixed: tuple[str, ...] = ()
    reset: str = ""
    system_length: str = ""
    draws: Callable[[Mapping[str, Any]], bool] = field(default=lambda flags: False)
    original_keys: Mapping[str, str] = field(default_factory=dict)
    programs: Mapping[str, Choice] = field(default_factory=dict)
    options: tuple[Option, ...] = ()

    @property
    def prunes(self) -> bool:
        """Whether an answer goes through code of ours, and drops or merges image tokens."""
        return bool(self.switch)

    def flags(self, options: argparse.Namespace) -> dict[str, Any]:
        """The mode's flags that the command line sets."""
        values = {option.flag: option.value(options) for option in self.options}
        return {flag: value for flag, value in values.items() if value is not None}


MODES: dict[str, Mode] = {}
"""All modes by name, in the order in which tables list them."""


def register(mode: Mode) -> None:
    """Add `mode` to `MODES`. Raises ValueError for a name that is there already."""
    if mode.name in MODES:
        raise ValueError(f"a mode's name must be its own, got a second {mode.name}")
    MODES[mode.name] = mode


def _value(options: argparse.Namespace, name: str) -> Any:
    # A program has no attribute for the options of modes that it does not offer.
    return getattr(options, name.removeprefix("--").replace("-", "_"), None)
