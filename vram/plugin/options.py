"""Options of the command line with their ini twins: what they are called, and values that can be read."""

from __future__ import annotations

import argparse
import math
import os
import shlex
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from vram.files import is_file

if TYPE_CHECKING:
    from vram.budgets.headroom import Headroom

_ACCEPT = "--vram-accept="

# option, metavar, help, type. Each has an ini twin of the same name; a default of None lets the ini file speak.
_OPTIONS: tuple[tuple[str, str, str, type], ...] = (
    (
        "device",
        "DEVICE",
        "where to measure: auto, cpu, cuda, cuda:INDEX, xpu, mps or simulated (default auto: CUDA if there is one)",
        str,
    ),
    ("card", "CARD", "a GPU, or a size as 24GiB: to forecast for; with --vram-device simulated, to simulate", str),
    ("laps", "N", "passes over the samples before the first look, warm-up included (default 5)", int),
    ("samples", "N", "samples a lap, for suites that let this choose", int),
    (
        "max-seconds",
        "SECONDS",
        "stop each replay after so long: what is not decided then is undecided (default: never)",
        float,
    ),
    ("report", "PATH", "write what was measured to this JSON file", str),
    ("undecided", "fail|skip", "what an undecided channel does to its test (default fail)", str),
    (
        "new",
        "fail|skip",
        "what a budget, a base or a recording that is missing does (default: fail where the variable CI is set, "
        "elsewhere skip)",
        str,
    ),
)
_STORAGE = "file://./.benchmarks"  # where pytest-benchmark saves runs unless a store is named
_CHOICES = {"undecided": ("fail", "skip"), "new": ("fail", "skip")}
_FLAGS = (
    (
        "accept",
        "rewrite the budgets that are checked to what is measured; --vram-accept=+2% or =+64MiB also lets each be "
        "exceeded by so much",
    ),
    (
        "breakdown",
        "trace each recording's highest sample once more: the report says what its peak is made of (default: where the "
        "run is saved or compared; ini vram_breakdown = false: never)",
    ),
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
        "what --vram-compare fails, as in peak:2%, growth:0, himap/peak:1MiB (default: every byte; may be repeated)",
        {"action": "append"},
    ),
)


def add_options(parser: pytest.Parser, arguments: Iterable[str] = ()) -> None:
    """Add the options and their ini twins. `arguments` are those of the command line, and of what adds to it."""
    group = parser.getgroup("vram", "GPU-memory regression tests")
    for name, metavar, text, kind in _OPTIONS:
        group.addoption(f"--vram-{name}", metavar=metavar, default=None, help=_escaped(text))
        parser.addini(_twin(name), text, type=_ini_type(kind), default=None)
    for name, text in _FLAGS:
        group.addoption(f"--vram-{name}", action="store_true", default=None, help=_escaped(text))
        parser.addini(_twin(name), text, type="bool", default=None if name == "breakdown" else False)
    for argument in sorted(set(arguments)):
        # A flag that may have a value only behind "=" is none that argparse knows: it would take the path of a test
        # after the flag for it. So each spelling in use is a flag of its own.
        if argument.startswith(_ACCEPT):
            value = argument.removeprefix(_ACCEPT)
            group.addoption(argument, dest="vram_accept", action="store_const", const=value, help=argparse.SUPPRESS)
    for name, metavar, text, how in _GATES:
        group.addoption(f"--vram-{name}", metavar=metavar, default=None, help=_escaped(text), **how)
    # `vram gate` passes it, with a run's name, base and report: see docs/ci.md.
    group.addoption("--vram-gate", action="store_true", default=False, help=argparse.SUPPRESS)
    # No ini twin: a file that always forces it would force it in CI.
    group.addoption("--vram-accept-force", action="store_true", default=False, help="--vram-accept, in CI too")
    parser.addini("vram_compare", _GATES[0][2], default=None)
    parser.addini("vram_compare_fail", _GATES[1][2], type="args", default=[])


def _escaped(text: str) -> str:
    """Help of an option as argparse takes it. That of an ini file's line is shown as it is."""
    return text.replace("%", "%%")


def given_arguments(config: pytest.Config) -> list[str]:
    """The arguments of this run, before they are parsed: of ini file, environment and command line."""
    arguments = shlex.split(os.environ.get("PYTEST_ADDOPTS", ""))
    with suppress(ValueError):  # a plugin that is given as an object comes before the ini file is read
        arguments += config.getini("addopts")
    for argument in config.invocation_params.args:
        arguments.append(argument)
        if argument.startswith("@") and is_file(argument[1:]):  # one with an argument a line
            with suppress(OSError):  # pytest says so itself
                arguments += Path(argument[1:]).read_text(encoding="utf-8", errors="replace").splitlines()
    return arguments


def _ini_type(kind: type) -> Any:
    """The type of an ini twin. Native TOML (pytest 9) has numbers, other files have text alone; 9.2 takes either."""
    if kind is str or pytest.version_tuple < (9,):
        return "string"
    return kind | str if pytest.version_tuple >= (9, 2) else kind.__name__


def check_options(config: pytest.Config) -> None:
    """Raise a usage error for values that can't be read, before anything is collected."""
    for name in (*(each for each, *_ in _OPTIONS), *(flag for flag, _ in _FLAGS), "compare"):
        ini(config, name)
    ini(config, "compare_fail")
    for name in ("laps", "samples"):
        whole_option(config, name)
    seconds_option(config)
    headroom_option(config)
    if card := option(config, "card"):
        from vram.cards import find_card  # only where one is named: pytest starts in every project

        try:
            find_card(card)
        except ValueError as error:
            raise pytest.UsageError(f"--vram-card: {error}") from None
    for name, choices in _CHOICES.items():
        if (value := option(config, name)) not in (None, "", *choices):
            raise pytest.UsageError(f"--vram-{name} must be {' or '.join(choices)}, got {value!r}")
    if config.getoption("--vram-accept-force"):
        config.option.vram_accept = option(config, "accept") or True
    elif option(config, "accept") and in_ci():
        raise pytest.UsageError(
            f"--vram-accept: CI={os.environ['CI']} is set, and nobody reviews a budget that CI accepts; run it where "
            "the change is committed, or force it with --vram-accept-force"
        )


def in_rootdir(config: pytest.Config) -> None:
    """Let a gate keep its runs in the folder `.benchmarks` of pytest's rootdir, unless a store is named.

    pytest-benchmark's own default is the folder where pytest is called.
    """
    if config.getoption("--vram-gate") and config.getoption("--benchmark-storage", None) == _STORAGE:
        config.option.benchmark_storage = f"file://{config.rootpath / '.benchmarks'}"


def in_ci() -> bool:
    """True where the environment variable CI is set, and is not 0 or false."""
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


def new_fails(config: pytest.Config) -> bool:
    """Whether a budget, base or recording that is missing fails the run: as --vram-new says, else in CI."""
    return (option(config, "new") or ("fail" if in_ci() else "skip")) == "fail"


def option(config: pytest.Config, name: str) -> Any:
    """The option's value, else that of its ini twin. Raises a usage error for a value of another type."""
    value = config.getoption(f"--vram-{name}")
    return ini(config, name) if value is None else value


def ini(config: pytest.Config, name: str) -> Any:
    """The ini file's value of an option. Raises a usage error for one of another type."""
    try:
        return config.getini(_twin(name))
    except (TypeError, ValueError) as error:  # pytest 9.2 raises a usage error itself
        raise pytest.UsageError(f"{_twin(name)}: {error}") from None


def _twin(name: str) -> str:
    return f"vram_{name.replace('-', '_')}"


def breakdown_option(config: pytest.Config, *, keeps: bool) -> Literal["always", "settled", ""]:
    """Which recordings are broken down: all with `--vram-breakdown` or its ini twin, none where that is false; else, in
    a run that `keeps` them or compares them, all that do not grow."""
    value = option(config, "breakdown")
    if value in (None, "", []):
        return "settled" if keeps else ""
    return "always" if value else ""


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


def headroom_option(config: pytest.Config) -> Headroom | None:
    """The headroom of `--vram-accept=+2%`; None without it. Raises a usage error for one that can't be read."""
    value = option(config, "accept")
    if value in (None, True, False):
        return None
    from vram.budgets.headroom import RULE, parse_headroom  # only where one is given

    try:
        if not value.startswith("+"):
            raise ValueError(f"{RULE}, got {value!r}")
        return parse_headroom(value)
    except ValueError as error:
        raise pytest.UsageError(f"--vram-accept: {error}") from None


def whole_option(config: pytest.Config, name: str) -> int | None:
    """The option as a whole number of at least 1; None where it is not set. Raises a usage error for another."""
    value = option(config, name)
    if value in (None, ""):
        return None
    if not str(value).isdecimal() or int(value) < 1:
        raise pytest.UsageError(f"--vram-{name} must be a whole number of at least 1, got {value!r}")
    return int(value)
