"""Options of the command line with their ini twins: what they are called, and values that can be read."""

from __future__ import annotations

import math
import os
from typing import Any

import pytest

# option, how it is parsed, help. Each has an ini twin of the same name; a default of None lets the ini file speak.
_OPTIONS = (
    (
        "device",
        "DEVICE",
        "where to measure: auto, cpu, cuda, cuda:INDEX, xpu, mps or simulated (default auto: CUDA if there is one)",
    ),
    ("card", "CARD", "a GPU, or a size as 24GiB: to forecast for; with --vram-device simulated, to simulate"),
    ("laps", "N", "passes over the samples before the first look, warm-up included (default 5)"),
    ("samples", "N", "samples a lap, for suites that let this choose"),
    (
        "max-seconds",
        "SECONDS",
        "stop each replay after so long: what is not decided then is undecided (default: never)",
    ),
    ("report", "PATH", "write what was measured to this JSON file"),
    ("undecided", "fail|skip", "what an undecided channel does to its test (default fail)"),
)
_FLAGS = (
    ("accept", "rewrite the budgets that are checked to what is measured"),
    ("breakdown", "trace each recording's highest sample once more: the report says what its peak is made of, by line"),
    ("disable", "measure nothing; tests that use the fixture vram are skipped"),
)
_GATES: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    (
        "compare",
        "RUN",
        "fail tests that need more than in this saved run (default recorded: of each the newest accepted run, "
        "else the first)",
        {"nargs": "?", "const": "recorded"},
    ),
    (
        "compare-fail",
        "CRITERION",
        "what --vram-compare fails, as in peak:2%%, growth:0, himap/peak:1MiB (default: every byte; may be repeated)",
        {"action": "append"},
    ),
)


def add_options(parser: pytest.Parser) -> None:
    """Add the options and their ini twins."""
    group = parser.getgroup("vram", "GPU-memory regression tests")
    for name, metavar, text in _OPTIONS:
        group.addoption(f"--vram-{name}", metavar=metavar, default=None, help=text)
        parser.addini(_twin(name), text, default=None)
    for name, text in _FLAGS:
        group.addoption(f"--vram-{name}", action="store_true", default=None, help=text)
        parser.addini(_twin(name), text, type="bool", default=False)
    for name, metavar, text, how in _GATES:
        group.addoption(f"--vram-{name}", metavar=metavar, default=None, help=text, **how)
    # No ini twin: a file that always forces it would force it in CI.
    group.addoption("--vram-accept-force", action="store_true", default=False, help="--vram-accept, in CI too")
    parser.addini("vram_compare", _GATES[0][2], default=None)
    parser.addini("vram_compare_fail", _GATES[1][2], type="args", default=[])


def check_options(config: pytest.Config) -> None:
    """Raise a usage error for values that can't be read, before anything is collected."""
    for name in ("laps", "samples"):
        whole_option(config, name)
    seconds_option(config)
    if card := option(config, "card"):
        from vram.cards import find_card  # only where one is named: pytest starts in every project

        try:
            find_card(card)
        except ValueError as error:
            raise pytest.UsageError(f"--vram-card: {error}") from None
    undecided = option(config, "undecided")
    if undecided not in (None, "", "fail", "skip"):
        raise pytest.UsageError(f"--vram-undecided must be fail or skip, got {undecided!r}")
    if config.getoption("--vram-accept-force"):
        config.option.vram_accept = True
    elif option(config, "accept") and os.environ.get("CI", "").lower() not in ("", "0", "false"):
        raise pytest.UsageError(
            f"--vram-accept: CI={os.environ['CI']} is set, and nobody reviews a budget that CI accepts; run it where "
            "the change is committed, or force it with --vram-accept-force"
        )


def option(config: pytest.Config, name: str) -> Any:
    """The option's value, else that of its ini twin."""
    value = config.getoption(f"--vram-{name}")
    return config.getini(_twin(name)) if value is None else value


def _twin(name: str) -> str:
    return f"vram_{name.replace('-', '_')}"


def seconds_option(config: pytest.Config) -> float | None:
    """`--vram-max-seconds` as a number above 0; None where it is not set. Raises a usage error for another."""
    value = option(config, "max-seconds")
    if value in (None, ""):
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0
    if not 0 < seconds < math.inf:
        raise pytest.UsageError(f"--vram-max-seconds must be a number above 0, got {value!r}")
    return seconds


def whole_option(config: pytest.Config, name: str) -> int | None:
    """The option as a whole number of at least 1; None where it is not set. Raises a usage error for another."""
    value = option(config, name)
    if value in (None, ""):
        return None
    if not str(value).isdecimal() or int(value) < 1:
        raise pytest.UsageError(f"--vram-{name} must be a whole number of at least 1, got {value!r}")
    return int(value)
