"""What the programs say on the standard output."""

from __future__ import annotations

import os
import sys

from llava.errors import BadInput


def say(text: str) -> None:
    """At once, and whatever the terminal's characters are: names of files may have others.

    Once nobody reads it any more it goes nowhere. Raises BadInput where it can't be written.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python would complain again while it exits
        if not isinstance(error, BrokenPipeError):  # `| head` has read enough; files and exit code are still wanted
            raise BadInput(f"the standard output must be writable, got {error}") from None
