"""Text of others (names of recordings, tests and files) as one line that is shown as it is and that nothing obeys."""

from __future__ import annotations

import json
import re
from unicodedata import category

_INVISIBLE = ("Cc", "Cf", "Cs")  # categories of Unicode: control, format, surrogate
# GitHub, Azure and others run lines that begin with ::, or have ##[...] or ##vso[...] anywhere, as commands.
_COMMAND = re.compile(r"^(\s*):(?=:)|#(?=#\w*\[)")


def shown(text: str) -> str:
    """`text` in one line of printable characters: line ends, control characters (colours, too), marks that turn text
    and lone surrogates as Python escapes them, and no command to a CI system. Shown text stays as it is."""
    if not text.isprintable():
        text = "".join(
            letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
        )
    return _COMMAND.sub(lambda command: f"{command[1] or ''}\\x{ord(command[0].strip()):02x}", text)


def shown_lines(text: str) -> str:
    """Each line of `text` as `shown` has it."""
    return "\n".join(map(shown, text.split("\n")))


def json_text(data: object) -> str:
    """`data` as JSON for standard output: strings stay what they are, and none is a command to a CI system."""
    return re.sub(r"#(?=#\w*\[)", r"\\u0023", json.dumps(data, indent=1))


def visible(text: str) -> str:
    """`text` for a page, which has lines and runs no commands: control characters, marks that turn text and lone
    surrogates as Python escapes them, all else as it is."""
    if text.isprintable():
        return text
    return "".join(
        letter.encode("unicode_escape").decode("ascii") if category(letter) in _INVISIBLE and letter != "\n" else letter
        for letter in text
    )
