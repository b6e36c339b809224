"""The terminal: tables of any width are readable, outcomes have colours where they are wanted, help has no escapes."""

from __future__ import annotations

import argparse
import re
import unicodedata

import pytest

from vram.plugin.options import add_options
from vram.text import aligned, columns, fitted

HEAD = ("recording", "runs", "growth/sample", "peak", "limit", "outcome")
ROWS = [
    HEAD,
    ("unet, batch of 8", "5 x 20", "0 B", "10.25 GiB", "10.00 GiB (+2%)", "over limit"),
    ("a name that is longer than any terminal of a phone is wide", "1 x 2", "-", "-", "-", "peaks alone"),
    ("長い名前", "5 x 2", "4,096 B", "1.00 MiB", "-", "grows"),
]


def test_a_table_that_fits_is_as_wide_as_it_is() -> None:
    """Its columns under one another, to the last column that the terminal has; one less, and it is paragraphs."""
    table = aligned(ROWS)
    width = max(map(columns, table))
    assert fitted(ROWS, 0) == fitted(ROWS, width) == table
    assert fitted(ROWS, width - 1) != table
    starts = {
        columns(line[: line.index(cell)]) for line, cell in zip(table, ("peak", "10.25", "-  ", "1.00"), strict=True)
    }
    assert len(starts) == 2  # of the peaks, and of the first dash, which is another column's


@pytest.mark.parametrize("width", [20, 40, 60, 80])
def test_a_narrow_terminal_gets_a_paragraph_for_each_row(width: int) -> None:
    """No line is wider than the terminal, and no figure is lost, cut or without its name."""
    lines = fitted(ROWS, width)
    assert max(map(columns, lines)) <= width
    text = " ".join(" ".join(lines).split())
    for phrase in (
        "unet, batch of 8 runs 5 x 20, growth/sample 0 B, peak 10.25 GiB, limit 10.00 GiB (+2%), outcome over limit",
        "a name that is longer than any terminal of a phone is wide runs 1 x 2, outcome peaks alone",
        "peak 1.00 MiB, outcome grows",
    ):
        assert phrase in text
    assert sum(not line.startswith(" ") for line in lines) >= len(ROWS) - 1


def test_wide_letters_count_as_wide() -> None:
    """Letters that take two columns, and marks that take none."""
    assert [columns(text) for text in ("abc", "長い", "e\u0301", "")] == [3, 4, 1, 0]
    assert unicodedata.east_asian_width("長") == "W"


def test_a_tone_is_around_its_cell_alone() -> None:
    """So that alignment is as without; in a paragraph the name has it."""

    def paint(text: str, tone: str) -> str:
        return f"<{tone}>{text}</>" if tone else text

    painted = fitted(ROWS, 0, tones=["bad", "", "bad"], toned=5, paint=paint)
    assert [re.sub(r"<\w*>|</>", "", line) for line in painted] == aligned(ROWS)
    assert painted[1].endswith("  <bad>over limit</>")
    narrow = fitted(ROWS, 40, tones=["bad", "", "bad"], toned=5, paint=paint)
    assert narrow[0] == "<bad>unet, batch of 8</>"
    assert sum("<" in line for line in narrow) == 2


SUITE = """
    import pytest, torch
    def test_over(vram):
        recording = vram.replay(lambda n: torch.zeros(1024), [0], laps=1, name="a recording whose name is rather long")
        vram.assert_peak(recording, "1 KiB", above_start=True)
    def test_stable(vram):
        vram.assert_stable(vram.replay(lambda n: torch.zeros(1024), [0], name="stable one"))
    def test_open(vram):
        vram.assert_stable(vram.replay(lambda n: torch.zeros(1024), [0], laps=1, name="open one"))
    @pytest.mark.vram_limit("1 KiB")
    def test_marked():
        torch.zeros(1024)
    def test_accepts(vram):
        vram.accept(vram.budget("b.toml", model="a model with a long name", dtype="bfloat16", card="RTX 4090"), 5)
"""
RED, YELLOW, GREEN = "\x1b[31m", "\x1b[33m", "\x1b[32m"


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.delenv("PY_COLORS")  # pytester sets it
    pytester.makepyfile(SUITE)
    return pytester


def section(result: pytest.RunResult) -> list[str]:
    """The lines of vram's section."""
    lines = result.outlines
    plain = [re.sub(r"\x1b\[\d*m", "", line).strip("= ") for line in lines]
    begin = plain.index("vram")
    end = next(at for at, line in enumerate(lines) if at > begin and "====" in line)
    return lines[begin + 1 : end]


def test_outcomes_have_colours_where_they_are_wanted(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red for what needs attention, yellow for no decision, green for what is fine; wherever pytest has colours."""
    run = ("-p", "no:benchmark", "--vram-device", "cpu")
    text = "\n".join(section(suite.runpytest(*run, "--color=yes")))
    assert f"{RED}over limit\x1b[0m" in text
    assert f"{GREEN}stable\x1b[0m" in text
    assert f"{YELLOW}inconclusive\x1b[0m" in text
    assert f"{RED}over limit: peak 3,072 B over\x1b[0m" in text
    assert text.startswith(f"{RED}2 of 4 need attention: ")
    plain = section(suite.runpytest(*run))
    assert "\x1b" not in "\n".join(plain)
    assert [re.sub(r"\x1b\[\d*m", "", line).split()[:3] for line in text.splitlines()] == [x.split()[:3] for x in plain]
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert RED in "\n".join(section(suite.runpytest(*run)))
    assert "\x1b" not in "\n".join(section(suite.runpytest(*run, "--color=no")))
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in "\n".join(section(suite.runpytest(*run)))


@pytest.mark.parametrize("width", [40, 60, 80])
def test_the_tables_of_a_run_fit(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """As wide as COLUMNS says; where nobody says how wide, a log for one, a table is a table."""
    run = ("-p", "no:benchmark", "--vram-device", "cpu", "--vram-accept")
    assert any(line.startswith("recording ") and line.endswith("seconds") for line in section(suite.runpytest(*run)))
    monkeypatch.setenv("COLUMNS", str(width))
    lines = section(suite.runpytest(*run))
    tables = lines[3 : next(at for at, line in enumerate(lines) if "requested_peak peak" in line)]
    tables += lines[next(at for at, line in enumerate(lines) if line.startswith("budgets accepted")) + 1 :]
    assert max(map(len, tables)) <= width
    text = " ".join(" ".join(tables).split())
    assert (
        "a recording whose name is rather long runs 1 x 1" in text or "a recording whose name is rather long " in text
    )


def test_help_reads_as_it_is_meant(pytester: pytest.Pytester) -> None:
    """A percent sign is one, for options and for the ini file's lines, and each option of the plugin is there."""
    text = pytester.runpytest("--help").stdout.str()
    assert "%%" not in text
    assert text.count("peak:2%") == 2
    assert "--vram-accept=+2%" in text
    parser = pytest.Parser(_ispytest=True)
    add_options(parser)
    options = [each for each in parser.getgroup("vram").options if each.attrs()["help"] != argparse.SUPPRESS]
    own = {name for option in options for name in option.names()}
    assert len(own) > 12
    assert not {name for name in own if not re.search(rf"^ *{name}\b", text, re.M)}
