"""JSON that is almost what we wrote: one value of it is another, or is gone. And the texts that nobody expects."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

# Names that end lines, begin commands of CI systems, colour a terminal, turn text around, or are no text at all.
HOSTILE_NAMES = (
    "a\n::error title=x::pwned",
    "::error::pwned",
    "  ::warning::pwned",
    "##[error]pwned ##vso[task.complete]",
    "\x1b[31mred\x1b[0m \x9b1m",
    "half \ud800 a letter",
    "turned \u202e around \u2066",
    "tab\tbell\x07back\b\rreturn\x85\u2028\x00",
    "</pre><script>x</script> `````` ]]> | @all",
    "n" * 300,
)
_NUMBERS = (float("inf"), float("-inf"), float("nan"), 10**400, -(2**63), 2**63, -1, 0, 0.5)
_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from((*_NUMBERS, *HOSTILE_NAMES)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a JSON value, of lists the first and the last."""
    yield above
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*above, key))
    elif isinstance(value, list):
        for index in {0, len(value) - 1} if value else ():
            yield from places(value[index], (*above, index))


@st.composite
def damaged(draw: st.DrawFn, whole: Any) -> Any:
    """`whole` with one of its values replaced or left out."""
    path = draw(st.sampled_from(list(places(whole))))
    if not path:
        return draw(_VALUES)
    changed = copy.deepcopy(whole)
    parent = changed
    for step in path[:-1]:
        parent = parent[step]
    if draw(st.booleans()):
        parent[path[-1]] = draw(_VALUES)
    else:
        del parent[path[-1]]
    return changed


def unprintable(text: str) -> list[str]:
    """Lines that hold something else than printable characters, or are a command to a CI system.

    The space of no width, by which Markdown's mentions and links are broken, is ours.
    """
    return [
        line
        for line in text.replace("\u200b", "").split("\n")
        if not line.isprintable() or line.lstrip().startswith("::") or "##[" in line or "##vso[" in line
    ]
