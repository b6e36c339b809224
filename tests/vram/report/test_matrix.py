"""Every outcome against every surface: one real run, and all that is said of it agrees in words and figures."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path

import pytest

from tests.vram.report.matrix import GOLDEN, MARKED, OUTCOMES, Surfaces, golden_texts, junit_text, surfaces
from vram.summary import NEEDS_ATTENTION, RunSummary
from vram.summary.reader import read_run

Row = tuple[str, str, str, str]  # outcome, growth, peak, limit


@pytest.fixture(scope="session")
def shown(tmp_path_factory: pytest.TempPathFactory, programs: Path) -> Surfaces:
    """Takes long: two runs of pytest in processes of their own, which no tensor of another test is alive in."""
    return surfaces(tmp_path_factory.mktemp("matrix"), str(programs / "python"))


@pytest.fixture(scope="session")
def run(shown: Surfaces) -> RunSummary:
    return read_run(shown.folder / "memory.json")


def said(run: RunSummary) -> dict[str, Row]:
    return {one.name: (one.outcome, one.growth_text, one.peak_text, one.limit_text) for one in run.recordings}


def terminal_rows(text: str) -> dict[str, Row]:
    head, *lines = text.splitlines()[text.splitlines().index(_line(text, "recording  ")) :]
    columns = [head.index(name) for name in ("recording", "growth/sample", "peak", "limit", "outcome", "seconds")]
    rows = {}
    for line in lines[: len(OUTCOMES)]:
        name, growth, peak, limit, outcome = (line[begin:end].strip() for begin, end in pairwise(columns))
        rows[re.split(r"  +", name)[0]] = (outcome, growth, peak, limit)
    return rows


def table_rows(text: str) -> dict[str, Row]:
    """Rows of a table in Markdown or on the page: recording, outcome, growth, peak, limit, and on the page two more."""
    rows = {}
    for line in text.splitlines():
        cells = [cell.strip().replace("**", "").replace("\\", "") for cell in line.strip().strip("|").split("|")]
        if len(cells) in (5, 7) and cells[0] in OUTCOMES:
            rows[cells[0]] = (cells[1], cells[2], cells[3], cells[4])
    return rows


def junit_rows(text: str, run: RunSummary) -> dict[str, Row]:
    """The figures of JUnit in the words of the schema: properties are whole numbers."""
    properties = dict(re.findall(r"^  vram\.(.+?) = (.*)$", text, re.MULTILINE))
    rows = {}
    for one in run.recordings:
        figures = {name: properties.get(f"{one.name}.{name}") for name in ("own_peak_bytes", "limit_bytes")}
        assert figures == {name: _text(getattr(one, name)) for name in figures}, one.name
        growth = properties.get(f"{one.name}.bytes_per_sample")
        assert growth == _text(one.bytes_per_sample), one.name
        rows[one.name] = (properties[f"{one.name}.outcome"], one.growth_text, one.peak_text, one.limit_text)
    return rows


def _text(figure: float | None) -> str | None:
    return None if figure is None else str(figure)


def _line(text: str, begin: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(begin))


def history_outcomes(text: str) -> Iterator[tuple[str, str]]:
    for block in text.split("\n\n"):
        name, _, head, *rows = block.strip().splitlines()
        newest = [row for row in rows if re.match(r"  \d{4}  ", row)][-1]
        yield name, re.split(r"  +", newest[head.index("outcome") :])[0]


def test_every_outcome_is_there(run: RunSummary) -> None:
    """Each recording ends as it was made to end, and those that need attention come first, the worst before others."""
    assert {one.name: one.outcome for one in run.recordings} == OUTCOMES
    order = [one.outcome in NEEDS_ATTENTION for one in run.recordings]
    assert order == sorted(order, reverse=True)
    assert {test.test.partition("::")[2]: test.outcome for test in run.tests} == MARKED
    assert [test.partition("::")[2] for test in run.otherwise] == ["test_of_its_own"]


def test_rows_agree_on_every_surface(run: RunSummary, shown: Surfaces) -> None:
    """Outcome, growth, peak and limit of each recording: the same words in the same order, wherever they stand."""
    expected = said(run)
    assert expected["beside others"][2:] == ("80.00 KiB", "90.00 KiB")
    assert list(terminal_rows(shown.terminal).items()) == list(expected.items())
    assert list(table_rows(shown.summary).items()) == list(expected.items())
    assert list(table_rows(shown.page).items()) == list(expected.items())
    assert junit_rows(junit_text(shown.junit), run) == expected
    markdown = table_rows(shown.markdown)  # has 60 lines at most
    assert list(markdown.items()) == list(expected.items())[: len(markdown)]
    assert len(markdown) >= 12


def test_the_headline_is_everywhere(run: RunSummary, shown: Surfaces) -> None:
    """One line says how many need attention and how each ended; a test that failed for its own reason is counted."""
    assert run.headline.startswith("9 of 20 need attention: 1 out of memory, 1 grows, 3 over limit, 1 regression, ")
    assert run.headline.endswith("1 test failed for a reason that is not memory")
    for text in (shown.terminal, shown.summary, shown.markdown, shown.page):
        assert run.headline in text.partition("\n")[0]


def test_every_reason_is_on_every_surface(run: RunSummary, shown: Surfaces) -> None:
    """Why a recording failed, is new or has no decision: the same sentence, and at least one for each of them."""
    needy = [
        one for one in run.recordings if OUTCOMES[one.name] not in ("stable", "plateau", "peaks alone", "expected")
    ]
    assert all(one.reasons for one in needy)
    assert run.reasons == [reason for one in needy for reason in one.reasons]
    for reason in run.reasons:
        assert reason in shown.terminal
        assert f"- {reason}" in shown.summary
        assert reason in shown.page
    shortened = [reason for reason in run.reasons if reason in shown.markdown]
    assert shortened


def test_annotations_are_the_failures_that_nobody_expected(run: RunSummary, shown: Surfaces) -> None:
    """One beside the code for each failing recording and marked test, in the words of its error."""
    failing = sorted(one.name for one in run.recordings if one.needs_attention)
    assert len(run.failures) == len(failing) + len(run.failed_tests)
    lines = shown.annotations.splitlines()
    assert len(lines) == len(run.failures)
    for failure, line in zip(run.failures, lines, strict=True):
        first = failure.message.partition("\n")[0].replace("%", "%25")
        assert f"title={failure.kind}%3A " in line
        assert f"::{first}" in line
    for one in run.recordings:
        named = any(failure.message.startswith(one.name) for failure in run.failures)
        assert named == (one.needs_attention and one.name != "dies"), one.name  # whose error names the sample


def test_the_history_keeps_what_happened(run: RunSummary, shown: Surfaces) -> None:
    """The newest row of each key has the outcome of its recording or marked test."""
    expected: Mapping[str, str] = {
        **{one.name: one.outcome for one in run.recordings},
        **{test.test: test.outcome for test in run.tests},
    }
    assert dict(history_outcomes(shown.history)) == expected


@pytest.mark.parametrize("name", sorted(path.name for path in GOLDEN.iterdir()))
def test_golden_texts(shown: Surfaces, name: str) -> None:
    """Each surface as it was reviewed: `python -m tests.vram.report.matrix` writes them anew."""
    assert golden_texts(shown)[name] == (GOLDEN / name).read_text(encoding="utf-8")
