"""Whatever a saved run holds, the commands read it or skip it, in words."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.vram.history.made import MACHINE, entry, run_json, write_runs
from tests.vram.report.damage import damaged, unprintable
from vram import cli
from vram.history import store
from vram.history.entries import Entry
from vram.report.gathered import gathered
from vram.report.page import html

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")

OOM = entry(None, verdict="out of memory", samples=None)
ONE_LAP = replace(entry(verdict=None), channels={n: replace(c, laps=("10x20",)) for n, c in entry().channels.items()})
RUN = run_json([entry(1001, mode="himap", noisy={"driver": 9}), OOM, ONE_LAP], minute=2, commit="a" * 40)
_fuzz = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def vram_command(*arguments: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = cli.main(arguments)
        except SystemExit as end:
            code = int(end.code or 0)
    return code, out.getvalue(), err.getvalue()


def all_commands(uri: str) -> None:
    """Every command ends with a code of its own, and prints no line that is not one line of text."""
    for arguments in (
        ("compare",),
        ("compare", "recorded", "--fail", "peak:2%", "--fail", "new", "--fail", "missing"),
        ("compare", "1", "2"),
        ("compare", "--json"),
        ("history",),
        ("history", "--json"),
        ("report", "--markdown", "-"),
    ):
        code, out, err = vram_command(*arguments, "--storage", uri)
        assert code in (0, 1, 2, 3), (arguments, err)
        assert unprintable(out) == unprintable(err) == [], arguments
    assert "Over time" in html(gathered(None, store.read(uri)))


@given(run=damaged(RUN))
@_fuzz
def test_a_file_with_one_value_wrong(tmp_path: Path, run: Any) -> None:
    """Read or skipped by `vram compare`, `vram history` and `vram report`, in every format."""
    uri = write_runs(tmp_path, [entry()])
    (tmp_path / MACHINE / "0002_made.json").write_text(json.dumps(run))
    all_commands(uri)


@given(name=st.text(max_size=40))
@_fuzz
def test_whatever_a_recording_is_called(tmp_path: Path, name: str) -> None:
    """Its name stays one line of printable text in every output."""
    uri = write_runs(tmp_path, [entry(mode=name or "n")], [entry(1001, mode=name or "n"), entry(mode=f"{name}x")])
    all_commands(uri)


def test_json_has_names_as_they_are_and_no_commands(tmp_path: Path) -> None:
    """Data is not changed: what a CI system would obey is escaped as JSON escapes, which reads back the same."""
    uri = write_runs(tmp_path, [entry(mode="##[error]##vso[x]")])
    out = vram_command("history", "--json", "--storage", uri)[1]
    assert unprintable(out) == []
    assert json.loads(out)["keys"][0]["key"]["mode"] == "##[error]##vso[x]"


@pytest.mark.parametrize(
    "runs",
    [
        [[OOM]],
        [[OOM], [OOM]],
        [[entry(), OOM]],
        [[entry()], [OOM]],
        [[OOM], [entry()]],
        [[entry(None, verdict=None)]],
        [[ONE_LAP], [ONE_LAP]],
        [[entry(samples=None)], [entry(samples=0)]],
        [[replace(entry(), seconds=None, outcome="")]],
    ],
)
def test_gaps_of_a_history(tmp_path: Path, runs: list[list[Entry]]) -> None:
    """Runs that only ran out of memory, with no channel, of one lap, of no sample: each surface shows what there is."""
    all_commands(write_runs(tmp_path, *runs))


def test_a_key_that_only_ran_out_of_memory_says_so(tmp_path: Path) -> None:
    """It has no figure to draw, and its outcome is on the page and in the list."""
    uri = write_runs(tmp_path, [OOM])
    page = html(gathered(None, store.read(uri)))
    assert '<span class="outcome bad">out of memory</span>' in page
    assert 'class="plot"' not in page
    assert "out of memory" in vram_command("history", "--storage", uri)[1]


@pytest.mark.parametrize(
    ("times", "newest"),
    [
        (["2026-01-03", "2026-01-02", "2026-01-01"], "0003_made"),
        (["2026-01-01", "2099-01-01", "2026-01-02"], "0003_made"),
        (["2026-01-01", "2026-01-02", "1970-01-01"], "0003_made"),
        (["", "not a time", "2026-01-01"], "0003_made"),
    ],
)
def test_the_newest_run_has_the_highest_number(tmp_path: Path, times: list[str], newest: str) -> None:
    """Numbers are given one after the other; clocks of several machines are not."""
    uri = write_runs(tmp_path, *([entry(1000 + number)] for number in range(len(times))))
    for number, time in enumerate(times, start=1):
        path = tmp_path / MACHINE / f"{number:04}_made.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "datetime": time}))
    assert [run.stem for run in store.read(uri).runs] == ["0001_made", "0002_made", newest]
    code, out, _ = vram_command("compare", "--storage", uri)
    assert (code, out.partition(" of ")[0]) == (1, "run 0003_made")


def test_numbers_of_five_digits_come_after_those_of_four(tmp_path: Path) -> None:
    """Numbers, not texts; files without one are ordered among the others by their time."""
    uri = write_runs(tmp_path, *([entry(1000 + number)] for number in range(3)))
    folder = tmp_path / MACHINE
    (folder / "0001_made.json").rename(folder / "10000_made.json")
    (folder / "0002_made.json").rename(folder / "by hand.json")
    assert [run.stem for run in store.read(uri).runs] == ["by hand", "0003_made", "10000_made"]


LONG = "n" * 300


@pytest.mark.parametrize(
    "arguments",
    [
        ("compare", LONG),
        ("compare", LONG, LONG),
        ("compare", "a\nb"),
        ("compare", "a\0b"),
        ("compare", "\udcff"),
        ("compare", "--storage", f"file://{LONG}"),
        ("compare", "--fail=--"),
        ("compare", "--fail=\x1b[31m"),
        ("compare", "--storage=--"),
        ("history", "--key=--", "--last=--"),
        ("history", "--last=\n"),
        ("report", "--report", LONG),
        ("report", "--markdown", LONG),
        ("report", "--report=--"),
        ("report", "--output", "a\0b"),
    ],
)
def test_bad_usage_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]) -> None:
    """Exit code 2, and one line that says what is wrong; no traceback."""
    write_runs(tmp_path / ".benchmarks", [entry()])
    monkeypatch.chdir(tmp_path)
    code, _, err = vram_command(*arguments)
    assert code == 2
    assert (err.count("\n"), unprintable(err)) == (1, [])
    assert err.startswith("vram")
