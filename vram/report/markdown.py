"""The page as Markdown for a pull request: at most 60 lines, whatever was measured and whatever it is called."""

from __future__ import annotations

import re
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from vram.escaping import shown
from vram.report.gathered import Page

MOST_LINES = 60
_LONGEST = 160


class _Safe(str):
    """Text that is printed as it is."""

    __slots__ = ()


def markdown(page: Page) -> str:
    """Headline, a row a recording (those that fail first), reasons, changes over time, what was not measured."""
    text = _templates().get_template("page.md").render(page=page).rstrip() + "\n"
    assert text.count("\n") <= MOST_LINES
    return text


@cache
def _templates() -> Environment:
    environment = Environment(  # noqa: S701 - HTML's rules are not Markdown's: `finalize` escapes all that is printed
        loader=PackageLoader("vram.report"),
        finalize=lambda value: value if isinstance(value, _Safe) else escaped(str(value)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cut": _cut, "in_a_fence": _in_a_fence}
    return environment


def escaped(text: str) -> str:
    """Return `text` in one line, as it is: no markup, no mention, no link, no HTML."""
    line = " ".join(shown(text.replace("\n", " ")).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;")
    line = re.sub("(?<!-)>", "&gt;", line)  # an arrow -> quotes nothing
    line = re.sub(r"([\\`*_\[\]|~!$#])", r"\\\1", line)
    # A mention, or an address that GitHub would make a link of: broken by a space of no width.
    return line.replace("@", "@\u200b").replace("://", ":\u200b//").replace("www.", "www\u200b.")


def _in_a_fence(line: str) -> str:
    """Return `line` without what would end the fence it stands in."""
    return _Safe(shown(line).replace("`", "'").replace("@", "@\u200b")[:_LONGEST])


def _cut(text: str, longest: int = _LONGEST) -> str:
    return text if len(text) <= longest else f"{text[: longest - 3]}..."
