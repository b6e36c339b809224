"""`vram diff`: two recordings of one run, piece by piece, from the history or from a report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.vram.history.made import MACHINE, entry, run_json
from vram import cli
from vram.history.entries import Entry
from vram.summary import ChannelSummary, MarkedSummary, RecordingSummary, RunSummary
from vram.summary.breakdown import Breakdown, Piece

MAPS = Piece(
    800, 2, "model.py:9 Attention.forward", "aten._softmax", "float16", "[20, 20]", "layers.*", "attention maps"
)
SCORES = Piece(64, 1, "prune.py:3 score", "aten.bmm", "float32", "[4, 4]", "layers.*", "pruning")
WEIGHTS = Piece(200, 1, dtype="float16", shape="[100]", module="head", category="weights")
PLAIN = Breakdown(2, 1000, (MAPS, WEIGHTS))
PRUNED = Breakdown(2, 464, (replace(MAPS, n_bytes=200, shape="[10, 10]"), SCORES, WEIGHTS))
SAYS = [
    "-536 B at the peak (sample 2): attention maps -600 B, pruning +64 B",
    "",
    "category        base   head   more",
    "attention maps  800 B  200 B  -600 B",
    "pruning         0 B    64 B   +64 B",
    "",
    "module    base   head   more",
    "layers.*  800 B  264 B  -536 B",
    "",
    "-600 B shrank: model.py:9 Attention.forward: aten._softmax float16 [10, 10] in 2 x layers.* (attention maps), "
    "[20, 20] before",
    "+64 B came: prune.py:3 score: aten.bmm float32 [4, 4] in layers.* (pruning)",
]


def saved(folder: Path, *entries: Entry) -> str:
    """A store with one run of these entries."""
    (folder / MACHINE).mkdir()
    (folder / MACHINE / "0001_main.json").write_text(json.dumps(run_json(entries)))
    return str(folder)


def test_where_a_mode_saves_and_where_it_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sums by category and by module, and the pieces: they add up to the difference, in text and in JSON."""
    plain, pruned = entry(1000, mode="baseline"), entry(464, mode="himap")
    entries = replace(plain, breakdown=PLAIN.compact()), replace(pruned, breakdown=PRUNED.compact())
    storage = saved(tmp_path, *entries)
    assert cli.main(["diff", "baseline", "himap", "--storage", storage]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"himap beside baseline, run 0001_main: {SAYS[0]}", *SAYS[1:]]
    assert cli.main(["diff", "baseline", "himap", "--storage", storage, "--run", "main", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert sum(piece["more_bytes"] for piece in data["pieces"]) == data["more_bytes"] == -536
    assert cli.main(["diff", "baseline", "himap", "--storage", storage, "--lines", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "and -536 B in 2 more pieces"


def test_of_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file of --vram-report suffices."""
    modes = {"baseline": PLAIN, "himap": PRUNED}
    recordings = [
        RecordingSummary(
            name,
            peak_bytes=one.peak_bytes,
            at_peak={"sample": 2, "bytes": one.peak_bytes, "lines": [], "breakdown": one.to_json()},
            channels={"requested_peak": ChannelSummary(True, [[one.peak_bytes]], 0)},
        )
        for name, one in modes.items()
    ]
    path = tmp_path / "memory.json"
    path.write_text(json.dumps(RunSummary(recordings=recordings).to_json()))
    assert cli.main(["diff", "baseline", "himap", "--report", str(path)]) == 0
    assert capsys.readouterr().out.splitlines() == [f"himap beside baseline, {path}: {SAYS[0]}", *SAYS[1:]]


def test_of_marked_tests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A report has their pieces too, by line alone. Beside a recording, whose peak counts what was there before, they
    are refused."""
    line = Piece(400, 1, "test_a.py:3 work", "aten.zeros", "float32", "[100]")
    tests = [
        MarkedSummary(f"test_a.py::{n}", n, breakdown=Breakdown(None, n, (replace(line, n_bytes=n),))) for n in (4, 8)
    ]
    recording = RecordingSummary(
        "baseline", peak_bytes=1000, at_peak={"sample": 2, "bytes": 1000, "lines": [], "breakdown": PLAIN.to_json()}
    )
    path = tmp_path / "memory.json"
    path.write_text(json.dumps(RunSummary(recordings=[recording], tests=tests).to_json()))
    assert cli.main(["diff", "test_a.py::4", "test_a.py::8", "--report", str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "",
        "+4 B grew: test_a.py:3 work: aten.zeros float32 [100] (other)",
    ]
    assert cli.main(["diff", "test_a.py::4", "baseline", "--report", str(path)]) == 2
    assert "must both be recordings or both marked tests" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nobody", "baseline"], "vram diff: no recording of run 0001_main is called nobody: there are baseline"),
        (
            ["baseline", "baseline"],
            "vram diff: the peak of baseline was not broken down in run 0001_main: run pytest with",
        ),
        (["a", "b", "--run", "nosuch"], "vram diff: no run is called nosuch"),
        (["a", "b", "--lines", "-1"], "vram diff: --lines must be a whole number of at least 0, got -1"),
    ],
)
def test_what_is_not_there_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    """One line, exit code 2."""
    storage = saved(tmp_path, entry(1000, mode="baseline"))
    assert cli.main(["diff", *arguments, "--storage", storage]) == 2
    assert capsys.readouterr().err.startswith(says)


def test_a_breakdown_of_another_peak_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that does not add up to the entry's peak, or can't be read: not broken down, and the entry is still there."""
    wrong = replace(entry(999, mode="one"), breakdown=PLAIN.compact())
    broken = replace(entry(1000, mode="other"), breakdown={"version": 1})
    storage = saved(tmp_path, wrong, broken)
    for name in ("one", "other"):
        assert cli.main(["diff", name, name, "--storage", storage]) == 2
        assert "was not broken down" in capsys.readouterr().err
    assert cli.main(["history", "--storage", storage]) == 0
