"""The store: what goes in comes out, nothing is lost or overwritten, and what can't be read is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.vram.history.hammer import storage
from tests.vram.history.made import MACHINE, entry, run_json, write_runs
from vram.history import store
from vram.history.saver import Saver

ROOT = Path(__file__).parents[3]
KILLS = int(os.environ.get("VRAM_HISTORY_KILLS", "40"))  # all 200: VRAM_HISTORY_KILLS=200 pytest tests/vram/history


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    """An entry comes back equal, from a file that pytest-benchmark's own class reads too."""
    saved = [entry(noisy={"reserved": 2**21}), entry(None, mode="oom", verdict="out of memory", samples=None)]
    storage(tmp_path).save(run_json(saved), "first")
    (run,) = store.read(f"file://{tmp_path}").runs
    assert list(run.entries) == saved
    assert run.path == f"{MACHINE}/0001_first.json"
    names = [benchmark["fullname"] for benchmark in storage(tmp_path).load_benchmarks()]
    assert names == ["himap", "oom"]


def test_finished_runs_survive_kills_and_crowds(tmp_path: Path) -> None:
    """Writers killed at random moments, and 8 at once: no finished run is lost, and everything can be read."""
    command = [sys.executable, "-m", "tests.vram.history.hammer", str(tmp_path), str(KILLS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_a_killed_writer_left_is_not_written_into(tmp_path: Path) -> None:
    """Killed between giving the file its name and dropping the old one, it leaves a second name of a whole run."""
    here = storage(tmp_path)
    here.save(run_json([entry(1)]), "first")
    os.link(tmp_path / MACHINE / "0001_first.json", tmp_path / MACHINE / ".unfinished")
    here.save(run_json([entry(2)]), "second")
    peaks = [run.entries[0].channels["requested_peak"].most_bytes for run in store.read(f"file://{tmp_path}").runs]
    assert sorted(peaks) == [1, 2]


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    """Numbers go on after the highest there is, past four digits, whatever the file holds."""
    (tmp_path / MACHINE).mkdir()
    for name in ("0007_x.json", "10041_x.json", "notes.json"):
        (tmp_path / MACHINE / name).write_text("mine")
    storage(tmp_path).save(run_json([entry()]), "x")
    assert json.loads((tmp_path / MACHINE / "10042_x.json").read_text())["benchmarks"]
    assert {(tmp_path / MACHINE / name).read_text() for name in ("0007_x.json", "10041_x.json", "notes.json")} == {
        "mine"
    }


FUTURE = run_json([entry()])
FUTURE["benchmarks"][0]["extra_info"]["vram"]["schema"] = 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "Expecting value"),
        ('{"benchmarks": [', "Expecting value"),
        ("[1, 2]", "list indices"),
        ('{"name": "foreign"}', "benchmarks"),
        ('{"benchmarks": [{"stats": {"ops": 1}, "extra_info": {"vram": {"schema": 1}}}]}', "entries must be a list"),
        ('{"benchmarks": [{"stats": {"ops": 1}, "extra_info": {"vram": [1]}}]}', "must have a schema"),
        ('{"benchmarks": [{"stats": {"ops": 1}, "extra_info": [7]}]}', "not a run of pytest-benchmark"),
        ('{"benchmarks": [{"stats": {"ops": 1}}], "commit_info": "main"}', "not a run of pytest-benchmark"),
        (json.dumps(FUTURE), "schema 2 is from a later version; this one reads 1"),
        ("\x00\xff", "skipped"),
    ],
)
def test_a_file_that_cannot_be_read_is_skipped_by_name(tmp_path: Path, content: str, reason: str) -> None:
    """Corrupt, foreign, of a future schema, empty: named with the reason, left as it is; other runs are read."""
    uri = write_runs(tmp_path, [entry(1)])
    odd = tmp_path / MACHINE / "0002_odd.json"
    odd.write_bytes(content.encode("latin-1"))
    history = store.read(uri)
    assert len(history.runs) == 1
    (skipped,) = history.skipped
    assert "0002_odd.json" in skipped
    assert reason in skipped
    assert odd.read_bytes() == content.encode("latin-1")


@pytest.mark.parametrize(
    ("name", "figure"), [("most_bytes", 1.5), ("most_bytes", True), ("last_bytes", "12"), ("exact", None)]
)
def test_an_entry_of_other_types_is_skipped_by_name(tmp_path: Path, name: str, figure: object) -> None:
    """A figure that is no whole number is refused; the other entries of the run are read."""
    run = run_json([entry(1), entry(2, mode="baseline")])
    channel = run["benchmarks"][0]["extra_info"]["vram"]["entries"][0]["channels"]["requested_peak"]
    channel.pop(name)
    if figure is not None:
        channel[name] = figure
    (tmp_path / MACHINE).mkdir()
    (tmp_path / MACHINE / "0001_odd.json").write_text(json.dumps(run))
    history = store.read(f"file://{tmp_path}")
    assert [one.name for one in history.runs[0].entries] == ["baseline"]
    assert "skipped himap of" in history.skipped[0]


def test_reading_makes_no_folder(tmp_path: Path) -> None:
    """A store that is not there holds no runs, and is not made by asking."""
    assert store.read(f"file://{tmp_path}/none").runs == ()
    assert not (tmp_path / "none").exists()


def test_runs_are_ordered_by_their_time(tmp_path: Path) -> None:
    """Not by their number, which every machine counts by itself."""
    for machine, minute in (("A", 2), ("B", 1)):
        (tmp_path / machine).mkdir()
        (tmp_path / machine / "0001_x.json").write_text(json.dumps(run_json([entry()], minute=minute)))
    assert [run.path for run in store.read(f"file://{tmp_path}").runs] == ["B/0001_x.json", "A/0001_x.json"]


class _Session:
    """Members that are used of pytest-benchmark's session object."""

    def __init__(self, folder: Path) -> None:
        from pytest_benchmark.storage.file import FileStorage

        made: Any = FileStorage
        self.benchmarks: list[Any] = []
        self.storage = made(folder, storage(folder).logger, default_machine_id=MACHINE)
        self.save, self.autosave, self.json = "x", None, None

    def finish(self) -> None:
        told = [benchmark.as_dict(include_data=False) for benchmark in self.benchmarks]
        self.storage.save({**run_json([]), "benchmarks": told}, self.save)


def _not_a_folder(folder: Path) -> None:
    (folder / MACHINE).write_text("a file where the folder should be")


def _too_large(folder: Path) -> None:
    """The disk is full: the write fails half-way."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (500, resource.RLIM_INFINITY))


def _name_too_long(folder: Path) -> None:
    """The folder is as it should be."""


@pytest.mark.parametrize("spoilt", [_not_a_folder, _too_large, _name_too_long])
def test_a_run_that_cannot_be_saved_is_an_error_in_words(tmp_path: Path, spoilt: Any) -> None:
    """A full disk or a folder that takes no files: `problem` says so, nothing is raised, nothing half is left."""
    import resource
    import signal

    session = _Session(tmp_path)
    if spoilt is _too_large:
        session.storage.save(run_json([entry(1)]), "whole")
    if spoilt is _name_too_long:
        session.save = "n" * 300
    saver = Saver(session)
    saver.put([entry()], {})
    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        spoilt(tmp_path)
        session.finish()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert f"history not saved in {tmp_path}: " in saver.problem
    if spoilt is _too_large:
        assert {path.name for path in (tmp_path / MACHINE).iterdir()} - {".lock"} == {"0001_whole.json"}


def test_a_session_of_another_pytest_benchmark_is_refused_by_name() -> None:
    """Everything that is used of it without a promise is checked, and what is missing named."""
    with pytest.raises(RuntimeError, match="has no storage, save, autosave, json"):
        Saver(type("Session", (), {"benchmarks": []})())
