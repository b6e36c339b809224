"""Printing on the standard output."""

from __future__ import annotations

import os
import sys

from llava.errors import BadInput


def say(text: str) -> None:
    """Print `text` at once; characters that the terminal does not have are escaped, as in names of files.

    A pipe whose reader has gone is no error. Raises BadInput where the output can't be written.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python would complain again while it exits
        if not isinstance(error, BrokenPipeError):  # `| head` has read enough; files and exit code still matter
            raise BadInput(f"the standard output must be writable, got {error}") from None
