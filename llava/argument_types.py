"""Types of command-line arguments, for argparse. Each raises ArgumentTypeError: the rule, then what came."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

from llava.errors import shown


def whole(lowest: int) -> Callable[[str], int]:
    """Parser of whole numbers of at least `lowest`."""

    def parse(text: str) -> int:
        try:
            number = int(text) if _is_plain(text) else lowest - 1
        except ValueError:
            number = lowest - 1
        if number < lowest:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {lowest}, got {shown(text)}")
        return number

    return parse


def positive(text: str) -> float:
    """Parse a finite number greater than 0."""
    try:
        number = float(text) if _is_plain(text) else math.nan
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number greater than 0, got {shown(text)}")
    return number


def sample_count(text: str) -> int:
    """Parse a whole number of at least 1, or -1, which means all."""
    if text == "-1":
        return -1
    try:
        return whole(1)(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}; -1 means all") from error


def token_counts(text: str) -> tuple[int, ...]:
    """Parse whole numbers of at least 1, separated by commas."""
    try:
        return tuple(whole(1)(part) for part in text.split(","))
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"answers must be numbers of tokens, as in 2,2,5,24: {error}") from None


def _is_plain(text: str) -> bool:
    return text.isascii() and "_" not in text  # Python would read 1_0 as 10, and digits of other scripts
