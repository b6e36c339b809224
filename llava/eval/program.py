"""Running a program that answers questions: whatever happens becomes an exit code. Imports no torch by itself."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

from llava.errors import BadInput
from llava.eval.command_line import ALL, Program, build_parser, check_packages, chosen_mode
from llava.eval.ranks import Rank, ReportWriter
from vram.exit_codes import BAD_INPUT, FINE, INTERRUPTED, OUR_FAULT, OUT_OF_MEMORY
from vram.replaying.collector import no_collections
from vram.replaying.out_of_memory import is_out_of_memory


def run_program(program: Program, argv: Sequence[str] | None) -> int:
    """Parse, run, and turn whatever happens into an exit code; a user's error is one line on stderr.

    0 fine, 1 out of memory, 2 bad input, 70 a fault of our own (with its traceback), 130 interrupted. Under torchrun
    this process is one of several that share the questions (see `llava.eval.supervisor`).
    """
    rank = Rank.here(os.environ)
    if rank is None:
        code, message = _run(program, argv, None)
        if message:
            print(f"{program.name}: error: {message}", file=sys.stderr)
        return code
    from llava.eval.supervisor import supervise  # needed under torchrun only

    def work(report: ReportWriter) -> int:
        code, message = _run(program, argv, report)
        report.ended(code, message or ("a fault of our own" if code else ""))
        return code

    return supervise(program.name, rank, work)


def _run(program: Program, argv: Sequence[str] | None, report: ReportWriter | None) -> tuple[int, str]:
    """The exit code, and one line about it."""
    try:
        options = build_parser(program).parse_args(argv)
        mode = chosen_mode(program, options)
        if mode.warning and (report is None or report.rank.index == 0):
            print(f"{program.name}: warning: {mode.warning}", file=sys.stderr)
        check_packages()
        with no_collections():
            # Not before the command line is known to be right: they import torch.
            from llava.eval.all_modes import evaluate_all
            from llava.eval.loop import evaluate
        if mode.name != ALL:
            evaluate(options, mode.name, mode.flags, prog=program.name, report=report)
        elif report is not None:
            raise BadInput("--mode all must run in one process, got torchrun: run the modes one by one")
        else:
            evaluate_all(options, prog=program.name)
    except BadInput as error:
        return BAD_INPUT, _one_line(str(error))
    except KeyboardInterrupt as error:
        return INTERRUPTED, _with_notes("interrupted", error, otherwise="nothing was written")
    except Exception as error:
        if isinstance(error, MemoryError) or is_out_of_memory(error):
            return OUT_OF_MEMORY, _with_notes(f"out of memory: {error}", error)
        traceback.print_exc()
        return OUR_FAULT, ""
    return FINE, ""


def _with_notes(message: str, error: BaseException, otherwise: str = "") -> str:
    """The message, and what became of the answers: the notes that `evaluate` added."""
    notes = getattr(error, "__notes__", []) or [otherwise] * bool(otherwise)
    return "; ".join(_one_line(part) for part in (message, *notes))


def _one_line(message: str) -> str:
    return " ".join(message.split())
