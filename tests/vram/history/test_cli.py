"""The commands `vram compare` and `vram history`, on stores made by hand."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.vram.history.made import CPU, MACHINE, entry, run_json, write_runs
from vram import cli
from vram.history.entries import Entry

Vram = Callable[..., tuple[int, str, str]]
OTHER_TORCH = {**CPU, "torch": "2.14.0+cpu"}


@pytest.fixture
def vram_command(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Vram:
    """Runs the command on the store of `tmp_path`; exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            code = cli.main(arguments)
        except SystemExit as end:
            code = int(end.code or 0)
        return (code, *capsys.readouterr())

    return run


def saved(folder: Path, *runs: Sequence[Entry] | Entry, commits: Sequence[str] = ()) -> None:
    write_runs(folder / ".benchmarks", *([run] if isinstance(run, Entry) else run for run in runs), commits=commits)


@pytest.mark.parametrize(
    ("runs", "code"),
    [
        ([1000, 1000], 0),
        ([1000, 1001], 1),
        ([1001, 1000], 0),
        ([1000], 3),
        ([], 3),
        ([1000, 1200, 1000], 0),
        ([1000, 1200, 1200], 0),
    ],
)
def test_the_newest_run_is_held_to_the_one_before(
    vram_command: Vram, tmp_path: Path, runs: list[int], code: int
) -> None:
    """Without arguments: 0 fine, 1 regression, 3 where there is nothing to compare."""
    saved(tmp_path, *(entry(peak) for peak in runs))
    assert vram_command("compare")[0] == code


def test_both_figures_and_the_run_are_shown(vram_command: Vram, tmp_path: Path) -> None:
    """Base, head, by how much, what is allowed, and which run it was."""
    saved(tmp_path, entry(1000), entry(1040))
    code, out, _ = vram_command("compare", "--fail", "peak:2%")
    assert code == 1
    assert "himap  peak    1,000 B  1.02 KiB  +40 B (+4.00%)  2 %      0001  regressed" in out
    assert out.endswith("regression: 1 regressed\n")
    assert vram_command("compare", "--fail", "peak:4%")[0] == 0


def test_tables_fit_the_terminal_and_verdicts_have_colours(
    vram_command: Vram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As COLUMNS, FORCE_COLOR and NO_COLOR say; a pipe gets tables without colours."""
    saved(tmp_path, [entry(1000), entry(5, mode="baseline")], [entry(1040), entry(5, mode="baseline")])
    plain = vram_command("compare")[1]
    monkeypatch.setenv("FORCE_COLOR", "1")
    painted = vram_command("compare")[1]
    assert "\x1b[31mregressed\x1b[0m" in painted
    assert "\x1b[32msame\x1b[0m" in painted
    assert "\x1b[31mregression: 1 regressed, 1 same\x1b[0m" in painted
    assert re.sub(r"\x1b\[\d*m", "", painted) == plain
    monkeypatch.setenv("NO_COLOR", "1")
    assert vram_command("compare")[1] == plain
    monkeypatch.setenv("COLUMNS", "40")
    compared, listed = vram_command("compare")[1], vram_command("history")[1]
    assert max(map(len, compared.splitlines()[2:])) <= 40
    assert "verdict\n  regressed" in compared or "verdict regressed" in compared
    table = [line for line in listed.splitlines() if line.startswith("  00") or line.startswith("    ")]
    assert max(map(len, table)) <= 40
    assert "date " in listed


def test_drift_fails_though_each_step_passed(vram_command: Vram, tmp_path: Path) -> None:
    """1 -> 1.04 -> 1.08 at 5 %; and beside the recorded base as well, for as long as nobody accepts it."""
    saved(tmp_path, entry(100), entry(104), entry(108))
    code, out, _ = vram_command("compare", "--fail", "peak:5%")
    assert code == 1
    assert "108 B, 8 B (8.00%) more than 100 B in run 0001; allowed 5 % more; no single run since was over" in out
    saved(tmp_path, *(entry(peak) for peak in (100, 104, 108, 108)))
    assert vram_command("compare", "recorded", "--fail", "peak:5%")[0] == 1
    saved(tmp_path, *(entry(peak, accepted=peak == 104) for peak in (100, 104, 108, 108)))
    assert vram_command("compare", "recorded", "--fail", "peak:5%")[0] == 0


def test_other_keys_are_not_compared(vram_command: Vram, tmp_path: Path) -> None:
    """A run on another torch is new, with what differs and how to record it; nothing else: exit 3."""
    saved(tmp_path, entry(1000), entry(10, environment=OTHER_TORCH))
    code, out, _ = vram_command("compare")
    assert code == 3
    assert (
        "himap is new: run 0001 differs: torch 2.13.0+cpu -> 2.14.0+cpu; "
        "record it with --benchmark-autosave --vram-accept"
    ) in out
    assert out.endswith("nothing comparable: 1 new\n")


def test_a_new_key_beside_known_ones_is_told(vram_command: Vram, tmp_path: Path) -> None:
    """A known key decides; what is new is said to be new; what is gone is said to be gone."""
    saved(tmp_path, [entry(), entry(mode="gone")], [entry(), entry(mode="fresh")])
    code, out, _ = vram_command("compare")
    assert code == 0
    assert "fresh is new: no run has measured it" in out
    assert "gone: in run 0001, not measured in this run" in out
    assert out.endswith("no regression: 1 new, 1 same\n")


def test_a_run_that_left_a_mode_out_is_no_gap(vram_command: Vram, tmp_path: Path) -> None:
    """The base of a mode is the last run that measured it."""
    saved(tmp_path, [entry(1000), entry(mode="baseline")], [entry(mode="baseline")], [entry(1001)])
    code, out, _ = vram_command("compare")
    assert code == 1
    assert "0001  regressed" in out


@pytest.mark.parametrize(
    "names",
    [
        ("1", "3"),
        ("0001", "0003"),
        (f"{MACHINE}/0001", f"{MACHINE}/0003"),
        ("0001_made", "0003_made"),
        ("aaaa111", "cccc"),
        (f".benchmarks/{MACHINE}/0001_made.json", f".benchmarks/{MACHINE}/0003_made.json"),
    ],
)
def test_a_run_is_named_in_many_ways(vram_command: Vram, tmp_path: Path, names: tuple[str, str]) -> None:
    """Number, machine and number, name, commit, path."""
    saved(tmp_path, *(entry(peak) for peak in (7, 8, 9)), commits=("aaaa1111", "bbbb2222", "cccc3333"))
    code, out, _ = vram_command("compare", *names, "--json")
    (change,) = [change for change in json.loads(out)["entries"][0]["changes"] if change["figure"] == "peak"]
    assert (code, change["base"], change["head"], change["status"]) == (1, 7, 9, "regressed")


def test_of_runs_of_one_name_the_newest_is_meant(vram_command: Vram, tmp_path: Path) -> None:
    """CI saves every run of a branch under its name."""
    saved(tmp_path, *(entry(peak) for peak in (7, 8, 9)), commits=["abcd1111"] * 3)
    for name in ("made", "abcd"):
        assert json.loads(vram_command("compare", "1", name, "--json")[1])["head"]["run"] == "0003_made"


def test_two_files_need_no_store(vram_command: Vram, tmp_path: Path) -> None:
    """Artefacts of two CI jobs, in an empty folder."""
    for name, peak in (("main", 5), ("branch", 5)):
        (tmp_path / f"{name}.json").write_text(json.dumps(run_json([entry(peak)])))
    assert vram_command("compare", "main.json", "branch.json")[0] == 0
    assert not (tmp_path / ".benchmarks").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("compare", "9"), "vram compare: no run is called 9: the newest are 0001_made, 0002_made"),
        (("compare", "--fail", "speed:1"), "vram compare: a figure must be one of peak, growth,"),
        (("compare", "--fail", "himmap/peak:1%"), "vram compare: no mode or test of any run is called himmap"),
        (("compare", "--fial", "peak:1"), "vram: unrecognized arguments: --fial"),
        (("compare", "1", "2", "3"), "vram: unrecognized arguments: 3"),
        (("compare", "odd.json"), "vram compare: skipped odd.json: Expecting value"),
        (("history", "--last", "-1"), "vram history: --last must be a whole number of at least 0, got -1"),
        (("history", "--last", "x"), "vram history: argument --last: invalid int value"),
        (("forget",), "vram: argument COMMAND: invalid choice: 'forget'"),
        ((), "vram: the following arguments are required: COMMAND"),
        (("history", "--storage", "s3://x"), "vram history: s3://x can't be opened"),
    ],
)
def test_bad_usage_is_one_line(vram_command: Vram, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    """Exit code 2, one line on stderr, no traceback, nothing on stdout."""
    saved(tmp_path, entry(), entry())
    (tmp_path / "odd.json").write_text("")
    code, out, err = vram_command(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message.removeprefix("vram compare: skipped ") in err


def test_a_number_of_two_machines_is_not_guessed(vram_command: Vram, tmp_path: Path) -> None:
    """Both are named."""
    saved(tmp_path, entry(1))
    (tmp_path / ".benchmarks" / "Other").mkdir()
    (tmp_path / ".benchmarks" / "Other" / "0001_x.json").write_text(json.dumps(run_json([entry(2)])))
    code, _, err = vram_command("compare", "1")
    assert code == 2
    assert f"1 is more than one run: Other/0001_x.json, {MACHINE}/0001_made.json" in err
    assert vram_command("compare", f"{MACHINE}/0001", "Other/0001")[0] == 1


def test_what_cannot_be_read_is_named_and_the_rest_compared(vram_command: Vram, tmp_path: Path) -> None:
    """A corrupt file is a warning on stderr, in JSON too, and no reason to stop."""
    saved(tmp_path, entry(), entry())
    (tmp_path / ".benchmarks" / MACHINE / "0003_half.json").write_text('{"benchmarks": [')
    code, out, err = vram_command("compare", "--json")
    assert code == 0
    assert "0003_half.json: Expecting value" in err
    assert len(json.loads(out)["skipped"]) == 1


def test_a_mode_that_ran_out_of_memory_regressed(vram_command: Vram, tmp_path: Path) -> None:
    """It has no figures to compare, and is worse all the same."""
    saved(tmp_path, entry(), entry(None, verdict="out of memory", samples=None))
    code, out, _ = vram_command("compare", "--fail", "peak:50%")
    assert code == 1
    assert "himap  memory" in out


def test_history_lists_runs_by_key_and_marks_steps(vram_command: Vram, tmp_path: Path) -> None:
    """Each key's runs with figures, and the run and commit that a change began with."""
    runs = [entry(1000), entry(1000), entry(2048, accepted=True), entry(2048)]
    saved(tmp_path, *([run, entry(9, mode="other")] for run in runs), commits=[f"{x}00000000000" for x in "abcd"])
    code, out, _ = vram_command("history", "--key", "himap")
    assert code == 0
    assert "himap\n  samples 20, source CPU tensors, torch 2.13.0+cpu, platform Linux x86_64\n" in out
    assert "0003  2026-01-01 00:03  c0000000  2.00 KiB  0 B            stable   accepted, step in peak" in out
    assert "  peak: 1,000 B -> 2.00 KiB (2,048 B) since run 0003 (c00000000000)\n" in out
    assert "other" not in out
    assert "and 3 earlier runs" in vram_command("history", "--last", "1")[1]


def test_history_as_json(vram_command: Vram, tmp_path: Path) -> None:
    """The same for programs."""
    saved(tmp_path, entry(1000), entry(1001))
    told = json.loads(vram_command("history", "--json")[1])
    (key,) = told["keys"]
    assert key["key"]["mode"] == "himap"
    assert [run["figures"]["peak"] for run in key["runs"]] == [1000, 1001]
    assert key["steps"]["peak"] == [{"index": 1, "before": 1000, "after": 1001, "run": "0002_made"}]
    assert vram_command("history", "--key", "mode=hi")[0] == 3


def test_hostile_names_are_text(vram_command: Vram, tmp_path: Path) -> None:
    """A mode called like a pattern or a path is just that."""
    name = "[a-z]*/../<script>\u202e"
    saved(tmp_path, entry(1, mode=name), entry(2, mode=name))
    assert vram_command("compare", "--fail", f"{name}/peak:1")[0] == 0
    assert vram_command("compare", "--fail", f"{name}/peak:0")[0] == 1


def test_a_fault_of_our_own_does_not_read_as_a_regression(
    vram_command: Vram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """70, as Python's own exit code of 1 would say that memory regressed."""

    def broken(*_: Any) -> Any:
        raise ZeroDivisionError

    saved(tmp_path, entry(), entry())
    monkeypatch.setattr("vram.history.command.with_the_one_before", broken)
    assert vram_command("compare")[0] == 70


def test_it_is_a_module_too_and_imports_no_torch(tmp_path: Path) -> None:
    """`python -m vram`, in seconds that a shell would not notice."""
    saved(tmp_path, entry(), replace(entry(), accepted=True))
    code = "import sys, runpy; sys.argv[1:] = ['compare']\ntry: runpy.run_module('vram', run_name='__main__')\n"
    code += "except SystemExit as end: assert end.code == 0; assert not {'torch', 'pytest'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("no regression: 1 same\n")


def test_a_reader_that_hangs_up_changes_no_exit_code(tmp_path: Path) -> None:
    """`vram compare | head -1` under pipefail still says that memory regressed."""
    saved(tmp_path, *([entry(peak, mode=f"m{mode}") for mode in range(900)] for peak in (1, 2)))
    command = f"set -o pipefail; '{sys.executable}' -m vram compare | true"
    done = subprocess.run(
        [str(shutil.which("bash")), "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize(
    ("runs", "arguments", "code"),
    [
        ([[entry()], [entry(), entry(mode="fresh")]], [], 0),
        ([[entry()], [entry(), entry(mode="fresh")]], ["--fail", "new"], 1),
        ([[entry()], [entry(), entry(mode="fresh")]], ["--fail", "missing"], 0),
        ([[entry(), entry(mode="gone")], [entry()]], ["--fail", "missing"], 1),
        ([[entry(), entry(mode="gone")], [entry()]], ["--fail", "new"], 0),
        ([[entry(), entry(mode="gone")], [entry()]], ["recorded", "--fail", "missing"], 1),
        ([[entry(), entry(mode="gone")], [entry()], [entry()]], ["recorded", "--fail", "missing"], 1),
        ([[entry(), entry(mode="gone")], [entry(accepted=True)], [entry()]], ["recorded", "--fail", "missing"], 0),
        ([[entry(), entry(mode="gone", environment=OTHER_TORCH)], [entry()]], ["recorded", "--fail", "missing"], 0),
        ([[entry(mode="old")], [entry(mode="renamed")]], ["--fail", "new", "--fail", "missing"], 1),
        ([[entry()]], [], 3),
        ([[entry()]], ["--fail", "new"], 1),
        ([[entry()]], ["recorded", "--fail", "new", "--fail", "missing"], 1),
        ([], ["--fail", "new", "--fail", "missing"], 3),
        ([[entry()], [entry(), entry(None, mode="dies", verdict="out of memory")]], ["--fail", "new"], 1),
        ([[entry()], [entry(None, verdict="out of memory", samples=None)]], ["--fail", "missing"], 1),
        ([[entry(1000)], [entry(1010), entry(mode="fresh")]], ["--fail", "new", "--fail", "peak:5%"], 1),
        ([[entry(1000)], [entry(1010)]], ["--fail", "new", "--fail", "peak:5%"], 0),
        ([[entry(1000)], [entry(1001)]], ["--fail", "new"], 1),
    ],
)
def test_what_is_new_or_missing_fails_where_it_is_to(
    vram_command: Vram, tmp_path: Path, runs: list[list[Entry]], arguments: list[str], code: int
) -> None:
    """Neither is a pass, and --fail new and --fail missing make it a failure; the byte-exact default stays."""
    saved(tmp_path, *runs)
    assert vram_command("compare", *arguments)[0] == code


def test_a_failure_that_is_no_regression_is_called_none(vram_command: Vram, tmp_path: Path) -> None:
    """The last line, and the JSON, say by what the comparison failed."""
    saved(tmp_path, [entry(mode="old"), entry()], [entry(mode="renamed"), entry()])
    fail = ("compare", "--fail", "new", "--fail", "missing")
    _, out, _ = vram_command(*fail)
    assert out.endswith("what has no base, or is missing, fails: 1 new, 1 same\n")
    assert json.loads(vram_command(*fail, "--json")[1])["failed_by"] == ["new", "missing"]


def test_running_out_of_memory_may_be_accepted(vram_command: Vram, tmp_path: Path) -> None:
    """A test that shows that something does not fit: as accepted, it is the same; fitting needs an accept again."""
    dies = entry(None, verdict="out of memory", samples=None)
    saved(tmp_path, replace(dies, accepted=True), dies)
    code, out, _ = vram_command("compare", "recorded", "--fail", "new", "--fail", "missing")
    assert (code, out.splitlines()[-1]) == (0, "no regression: 1 same")
    saved(tmp_path, dies, dies)
    assert vram_command("compare", "recorded", "--fail", "new")[0] == 1
