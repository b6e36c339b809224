"""Others' text in a page, in its scripts and in Markdown."""

from __future__ import annotations

import html
import json

import pytest

from tests.vram.page.made import HOSTILE
from vram.page.text import Markup, code, cut, joined, script_json, tag, visible


@pytest.mark.parametrize("text", HOSTILE)
def test_text_stays_text_in_a_tag(text: str) -> None:
    """Neither a child nor an attribute ends the tag it stands in; read back, it is what was visible of it."""
    told = tag("p", text, title=text)
    begin, _, rest = told.removeprefix('<p title="').partition('">')
    assert html.unescape(begin) == visible(text)
    assert '"' not in begin
    assert "<" not in rest.removesuffix("</p>")
    assert html.unescape(rest.removesuffix("</p>")) == visible(text)


@pytest.mark.parametrize("text", HOSTILE)
def test_json_stays_inside_its_script(text: str) -> None:
    """No text ends the script element or begins a comment, none is changed, and every line end is escaped."""
    told = script_json({text: [text]})
    assert not set("<>&\u2028\u2029\n") & set(told)
    assert json.loads(told) == {text: [text]}


def test_json_refuses_what_no_browser_reads() -> None:
    """NaN and infinities are an error, not a page that stays blank."""
    with pytest.raises(ValueError, match="JSON"):
        script_json([float("nan")])


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("a\tb\nc", "a b c"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\u202eabc", "\\u202eabc"),
        ("\ud800", "\\ud800"),
        ("naïve 図", "naïve 図"),
        ("\u200b", "\\u200b"),
    ],
)
def test_what_would_not_be_seen_is_written_out(text: str, seen: str) -> None:
    """Controls, bidirectional signs, zero-width signs and halves of pairs are told; letters of any script stay."""
    assert visible(text) == seen
    visible(text).encode("utf-8")


def test_finished_html_is_not_escaped_again() -> None:
    """Tags nest; None is left out, as attribute and as child."""
    inner = tag("b", "1 < 2")
    assert joined(["x", None, inner, 3]) == "x<b>1 &lt; 2</b>3"
    assert tag("a", None, inner, class_="c", aria_label=None, hidden=True) == '<a class="c" hidden><b>1 &lt; 2</b></a>'
    assert isinstance(inner, Markup)


def test_a_long_text_is_cut_in_the_middle() -> None:
    """Both ends are what tells test ids apart."""
    assert cut("abcdefghij", 7) == "ab...ij"
    assert cut("abcdefg", 7) == "abcdefg"


def code_spans(line: str) -> str:
    """What CommonMark leaves of a line when its code spans are taken out: a span ends at a run of as many backticks."""
    left, at = "", 0
    while at < len(line):
        if line[at] != "`":
            left, at = left + line[at], at + 1
            continue
        width = len(line) - at - len(line[at:].lstrip("`"))
        end = at + width
        while end < len(line):
            if line[end] != "`":
                end += 1
                continue
            run = len(line[end:]) - len(line[end:].lstrip("`"))
            if run == width:
                break
            end += run
        assert end < len(line), f"a code span does not end in {line!r}"
        at = end + width
    return left


@pytest.mark.parametrize("text", [*HOSTILE, "`", "``x", "x`", "", "   ", "\\"])
def test_markdown_reads_nothing_in_a_code_span(text: str) -> None:
    """The span holds all of the text, whatever backticks are in it, and is one line."""
    assert code_spans(f"a {code(text)} b") == "a  b"
    assert "\n" not in code(text)


@pytest.mark.parametrize("text", HOSTILE)
def test_no_pipe_ends_a_cell(text: str) -> None:
    """In a table every pipe has exactly one backslash before it, whichever way the reader counts backslashes."""
    told = code(text, in_table=True)
    assert all(told[at - 1] == "\\" and told[at - 2] != "\\" for at, letter in enumerate(told) if letter == "|")
