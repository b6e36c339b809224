"""Errors of the user, in one line."""

from __future__ import annotations

import reprlib


class BadInput(ValueError):
    """Input that breaks a rule. The message is one line: the rule, then what came."""


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 200


def shown(value: object) -> str:
    """`value` as one short line of text, however large it is."""
    return _short.repr(value)
