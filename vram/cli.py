"""The command `vram`: one subcommand a line of `_COMMANDS`."""

from __future__ import annotations

import argparse
import gc
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from vram.exit_codes import BAD_INPUT, INTERRUPTED, OUR_FAULT
from vram.history import command as commands
from vram.report import command


@dataclass(frozen=True)
class _Command:
    """`add` adds its arguments; `run` returns exit code and text, and raises ValueError for bad input."""

    name: str
    summary: str
    description: str
    add: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], tuple[int, str]]
    epilog: str = ""


_COMMANDS = (
    _Command(
        "compare",
        "is the newest run worse than the one before, or than BASE?",
        commands.COMPARE,
        commands.add_compare,
        commands.compare,
        commands.EXITS,
    ),
    _Command(
        "history",
        "list saved runs by key, and since when a figure is what it is",
        commands.HISTORY,
        commands.add_history,
        commands.history,
    ),
    _Command("report", command.SUMMARY, command.REPORT, command.add_report, command.report, command.EXITS),
)


class _Parser(argparse.ArgumentParser):
    """Bad usage is one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns its exit code."""
    parser = _Parser(prog="vram", description="GPU-memory regression tests over time: what pytest saved, compared.")
    commands_of = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for one in _COMMANDS:
        sub = commands_of.add_parser(
            one.name,
            help=one.summary,
            description=one.description,
            epilog=one.epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        one.add(sub)
        sub.set_defaults(run=one.run, of=sub.prog)
    for stream in (sys.stdout, sys.stderr):  # a test may be called anything
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    parsed = parser.parse_args(arguments)
    collecting = gc.isenabled()
    gc.disable()  # thousands of runs are read and none let go of: collecting would go through them again and again
    try:
        run: Callable[[argparse.Namespace], tuple[int, str]] = parsed.run
        code, text = run(parsed)
    except ValueError as error:
        print(f"{parsed.of}: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception:  # exit code 1 would say that memory regressed
        traceback.print_exc()
        return OUR_FAULT
    finally:
        if collecting:
            gc.enable()
    try:
        print(text, flush=True)
    except BrokenPipeError:  # `vram history | head`: Python would complain again while it exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code
