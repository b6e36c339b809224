"""The command `vram`: one subcommand a line of `_COMMANDS`."""

from __future__ import annotations

import argparse
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

import vram
from vram.escaping import shown
from vram.exit_codes import BAD_INPUT, INTERRUPTED, OUR_FAULT
from vram.forecasting import command as forecasting
from vram.gating import bisect as bisecting
from vram.gating import gate as gating
from vram.gating import init as starting
from vram.history import command as history
from vram.history import diff
from vram.replaying.collector import no_collections
from vram.report import command as report


@dataclass(frozen=True)
class _Command:
    """`add` adds its arguments; `run` returns exit code and text, and raises ValueError for bad input."""

    name: str
    summary: str
    description: str
    add: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], tuple[int, str]]
    epilog: str = ""
    runs_pytest: bool = False  # what it does not know is pytest's


_COMMANDS = (
    _Command("init", starting.SUMMARY, starting.INIT, starting.add_init, starting.init, starting.EXITS),
    _Command("gate", gating.SUMMARY, gating.GATE, gating.add_gate, gating.gate, gating.EXITS, runs_pytest=True),
    _Command(
        "bisect",
        bisecting.SUMMARY,
        bisecting.BISECT,
        bisecting.add_bisect,
        bisecting.bisect,
        bisecting.EXITS,
        runs_pytest=True,
    ),
    _Command(
        "compare",
        "compare the newest run with the one before it, or with BASE",
        history.COMPARE,
        history.add_compare,
        history.compare,
        history.EXITS,
    ),
    _Command(
        "history",
        "list saved runs by key, and from which run on a figure is what it is now",
        history.HISTORY,
        history.add_history,
        history.history,
    ),
    _Command("diff", diff.SUMMARY, diff.DIFF, diff.add_diff, diff.diff, diff.EXITS),
    _Command(
        "forecast",
        forecasting.SUMMARY,
        forecasting.FORECAST,
        forecasting.add_forecast,
        forecasting.forecast,
        forecasting.EXITS,
    ),
    _Command("report", report.SUMMARY, report.REPORT, report.add_report, report.report, report.EXITS),
)


class _Parser(argparse.ArgumentParser):
    """Bad usage is one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, shown(f"{self.prog}: {message}; see {self.prog} --help") + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns its exit code."""
    for stream in (sys.stdout, sys.stderr):  # a test may be called anything
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    parser = _parser()
    for argument in sys.argv[1:] if arguments is None else arguments:
        if argument.startswith("--") and argument.endswith("=--"):  # argparse before Python 3.13 takes it for none
            parser.error(f"an option must have a value, got {argument}")
    parsed, others = parser.parse_known_args(arguments)
    if others and not parsed.runs_pytest:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    parsed.pytest = others
    try:
        code, text = _run(parsed)
    except ValueError as error:
        print(shown(f"{getattr(parsed, 'command', parsed.prog)}: {error}"), file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception:  # exit code 1 would say that memory regressed
        traceback.print_exc()
        return OUR_FAULT
    try:
        if text:
            print(text, flush=True)
    except BrokenPipeError:  # `vram history | head`: Python would complain again while it exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="vram", description="GPU-memory regression tests over time: compare and show saved runs.")
    parser.add_argument("--version", action="version", version=f"vram {vram.__version__}, of himap-vram")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        subparser = subparsers.add_parser(
            command.name,
            help=command.summary,
            description=command.description,
            epilog=command.epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.add(subparser)
        subparser.set_defaults(run=command.run, prog=subparser.prog, runs_pytest=command.runs_pytest)
    return parser


def _run(parsed: argparse.Namespace) -> tuple[int, str]:
    """Run the subcommand without the collector: thousands of runs are read, and it would go through them each time."""
    run: Callable[[argparse.Namespace], tuple[int, str]] = parsed.run
    with no_collections():
        return run(parsed)
