"""The zoo itself: its files are read as they are written, wrong answers are reported, and its page is current."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tests.vram.zoo.__main__ import main, right_answers, table
from tests.vram.zoo.cases import KINDS, ZOO, cases, matches, read_case, witnesses
from tests.vram.zoo.judging import Seen, wrong
from tests.vram.zoo.page import page

LEAK = read_case(ZOO / "leaks" / "growing_cat.py")
LINE = {
    "where": f"test_growing_cat.py:{LEAK.here} Index.add",
    "caller": "",
    "op": "aten.cat",
    "shape": "[660, 8]",
    "bytes_per_sample": 96.0,
    "holder": "attribute `all` of Index `INDEX`, global of module test_growing_cat",
}
SEEN = Seen(
    outcome="failed",
    error="MemoryGrowth",
    message="Index.add: live memory grows\n  snapshot for pytorch.org/memory_viz: vram-snapshots/add.pickle",
    modes=[{"verdict": "grows", "bytes_per_sample": 96.0, "explanation": {"lines": [LINE], "note": ""}}],
    snapshot_bytes=1,
)


def seen(**changed: object) -> Seen:
    """SEEN, with another first line."""
    explanation = {"lines": [LINE | changed], "note": ""}
    return replace(SEEN, modes=[SEEN.modes[0] | {"explanation": explanation}])


def test_the_zoo_is_as_large_as_promised_and_its_page_is_current() -> None:
    """At least 45 cases, no name twice; docs/zoo.md is what `python -m tests.vram.zoo --table` prints."""
    names = [case.name for kind in KINDS for case in cases(kind)]
    assert len(set(names)) == len(names) >= 45
    assert Path("docs/zoo.md").read_text(encoding="utf-8") == page()


@pytest.mark.parametrize("kind", KINDS)
def test_a_push_sees_everything_that_a_case_can_expect(kind: str) -> None:
    """Each verdict, error, device, sort of holder and suggestion; and of cases that expect nothing else some."""
    every = cases(kind)
    chosen = [case for case in every if case.name in witnesses(every)]
    assert set().union(*(case.sorts for case in chosen)) == set().union(*(case.sorts for case in every))
    plain = [case for case in every if not case.sorts <= set().union(*(one.sorts for one in every if one is not case))]
    assert len(plain) < len(chosen) < len(every)


def test_a_case_is_read_from_its_comments() -> None:
    """Words go on in lines that are indented further; the marked line is found."""
    case = read_case(ZOO / "leaks" / "exception_traceback.py")
    assert case.holder is not None
    assert ", in the traceback of exception ValueError" in case.holder
    assert case.here is not None
    assert "# here" in case.path.read_text(encoding="utf-8").splitlines()[case.here - 1]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ('"""Says nothing."""\n', "one `# expect:`"),
        ("# expect: grows\n", "a docstring"),
        ('"""Twice."""\n# expect: grows\n# expect: stable\n', "one `# expect:`"),
        ('"""Misspelt."""\n# expects: grows\n', "must be one of .* got 'expects'"),
        ('"""Where?"""\n# expect: grows\n# holder: list\n', "one line marked `# here`, got 0"),
    ],
)
def test_a_case_that_does_not_say_what_is_expected_is_refused(tmp_path: Path, source: str, message: str) -> None:
    """The file, the rule, what came."""
    folder = tmp_path / "leaks"
    folder.mkdir()
    (folder / "case.py").write_text(source)
    with pytest.raises(ValueError, match=f"case.py: .*{message}"):
        read_case(folder / "case.py")


def test_a_star_stands_for_anything_and_the_rest_for_itself() -> None:
    """Brackets and dots are themselves; the whole text must fit."""
    assert matches("list `x` (* items), *", "list `x` (40 items), global of module a")
    assert not matches("list (1 item)", "list (1 item) in list")
    assert not matches("a.b", "axb")


def test_the_right_answer_is_right() -> None:
    """Nothing to tell of what is as expected."""
    assert wrong(LEAK, SEEN) == []


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (replace(SEEN, outcome="passed", error=""), "outcome: expected 'failed', got 'passed'"),
        (replace(SEEN, error="Undecided"), "error: expected 'MemoryGrowth', got 'Undecided'"),
        (replace(SEEN, message="\n" * 25 + "."), "the failure has 26 lines"),
        (replace(SEEN, message="MemoryGrowth"), "last line: expected"),
        (replace(SEEN, snapshot_bytes=0), "there is no snapshot"),
        (seen(where="test_growing_cat.py:1 Index.add"), "line: expected"),
        (seen(caller="test_growing_cat.py:9 run"), "caller: expected ''"),
        (seen(holder="list (2 items)"), "holder: expected"),
        (seen(op=""), "operation: got ''"),
        (seen(bytes_per_sample=48.0), "48.0 B a sample explained, of 96.0"),
        (replace(SEEN, modes=[{"verdict": "plateau", "bytes_per_sample": 0.0}]), "verdict: expected 'grows'"),
        (replace(SEEN, modes=[SEEN.modes[0] | {"explanation": {"lines": [], "note": "why"}}]), "no line is named: why"),
    ],
)
def test_a_wrong_answer_is_reported(answer: Seen, line: str) -> None:
    """Each thing that a case expects is looked at."""
    assert any(each.startswith(line) for each in wrong(LEAK, answer)), wrong(LEAK, answer)


def test_only_what_passed_is_counted_as_right(tmp_path: Path) -> None:
    """A failure, an error and a known fault are wrong answers, and so is a case that did not run."""
    (tmp_path / "j.xml").write_text(
        '<testsuites><testsuite><testcase name="t[good]"/><testcase name="t[bad]"><failure/></testcase>'
        '<testcase name="t[known]"><skipped/></testcase><testcase name="t[ended]"><error/></testcase>'
        "</testsuite></testsuites>"
    )
    assert right_answers(tmp_path / "j.xml") == {"good"}
    assert table([LEAK], Counter(), 3)[1].split() == ["growing_cat", "leak", "grows", "0", "of", "3"]


@pytest.mark.full
def test_every_case_is_right_twenty_times(capsys: pytest.CaptureFixture[str]) -> None:
    """Each run in a process of its own. Takes 40 minutes."""
    assert main(["--repeat", "20"]) == 0, capsys.readouterr().out
