"""Saving and comparing from within pytest, by running a real one inside."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import vram
from vram import cli
from vram.explanation.allocations import Allocation
from vram.explanation.body import body_in_pieces
from vram.history import store
from vram.history.runs import Run
from vram.report.gathered import gathered
from vram.report.markdown import markdown
from vram.summary.breakdown import from_json
from vram.summary.reader import read_run

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")

SUITE = """
    import os
    import pytest
    import torch
    SIZE = int(os.environ.get("SIZE", "1000"))
    @pytest.fixture(scope="session")
    def recording(vram):
        with torch.inference_mode():
            return vram.replay(lambda n: torch.zeros(SIZE), [1, 2], name="shared", laps=3)
    def test_growth(vram, recording): vram.assert_stable(recording)
    def test_peak(vram, recording): vram.assert_peak(recording, 2**40)
    @pytest.mark.vram_limit("1 GiB")
    def test_marked(): torch.zeros(256)
    def test_other(): pass
"""
TIMED = """
    import torch
    def test_timed(vram, benchmark):
        benchmark.pedantic(lambda: None)
        vram.replay(lambda n: torch.zeros(9), [1, 2], name="timed", laps=3)
"""
RUN = ("--vram-device", "cpu", "--benchmark-quiet")


@pytest.fixture(autouse=True)
def _own_ini(pytester: pytest.Pytester) -> None:
    # Asking what the processor is takes longer than all the rest.
    pytester.makeconftest("def pytest_benchmark_generate_machine_info(): return {}")
    warnings = "filterwarnings =\n    error\n    ignore::pytest.PytestAssertRewriteWarning\n"
    pytester.makeini(f"[pytest]\naddopts = -p no:asyncio\n{warnings}")


def runs(pytester: pytest.Pytester) -> list[Run]:
    history = store.read(f"file://{pytester.path}/.benchmarks")
    assert history.skipped == []
    return list(history.runs)


@pytest.fixture
def alive() -> int:
    """Bytes that earlier tests of this process keep: an in-process run's absolute figures count them."""
    with vram.measure("cpu") as measured:
        return measured.before_bytes


def peaks(run: Run) -> dict[str, int]:
    return {
        one.name: max(channel.most_bytes for name, channel in one.channels.items() if "peak" in name)
        for one in run.entries
    }


def test_a_run_is_saved_with_what_used_only_the_fixture(pytester: pytest.Pytester, alive: int) -> None:
    """Session fixtures' recordings, marked tests, and tests with a benchmark of their own: one entry each; with time,
    so that pytest-benchmark's own commands read them."""
    pytester.makepyfile(test_suite=SUITE, test_timed=TIMED)
    result = pytester.runpytest(*RUN, "--benchmark-autosave")
    result.assert_outcomes(passed=5)
    (run,) = runs(pytester)
    assert peaks(run) == {"shared": alive + 4000, "test_suite.py::test_marked": 1024, "timed": alive + 36}
    (file,) = pytester.path.glob(".benchmarks/*/0001_*.json")
    saved = {one["fullname"]: one for one in json.loads(file.read_text())["benchmarks"]}
    assert sorted(saved) == ["shared", "test_suite.py::test_marked", "test_timed.py::test_timed"]
    assert saved["test_timed.py::test_timed"]["extra_info"]["vram"]["entries"][0]["key"]["mode"] == "timed"
    assert saved["shared"]["stats"]["min"] > 0
    for arguments in (["list"], ["compare", "0001"]):
        theirs = pytester.run(sys.executable, "-m", "pytest_benchmark", *arguments)
        assert theirs.ret == 0
    theirs.stdout.fnmatch_lines(["*benchmark 'vram': 2 tests*", "shared *"])


def test_no_table_lists_recordings_as_timings(pytester: pytest.Pytester) -> None:
    """pytest-benchmark's has its user's benchmarks alone, and is not there without any; the file is named still."""
    pytester.makepyfile(test_suite=SUITE, test_timed=TIMED)
    run = ("--vram-device", "cpu", "--benchmark-autosave")
    alone = pytester.runpytest(*run, "test_suite.py")
    alone.assert_outcomes(passed=4)
    alone.stdout.no_fnmatch_line("*Name (time in*")
    alone.stdout.no_fnmatch_line("*benchmark *: * test*")
    assert "Saved benchmark data in" in alone.stdout.str() + alone.stderr.str()
    both = pytester.runpytest(*run, "--benchmark-compare")
    both.stdout.fnmatch_lines(["*benchmark: 1 tests*", "*Name (time in*", "test_timed *"])
    both.stdout.no_fnmatch_line("*benchmark 'vram'*")
    assert [len(run.entries) for run in runs(pytester)] == [2, 3]


def test_under_xdist_the_controller_saves_and_the_gate_is_on(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, forked: None
) -> None:
    """One run with every worker's entries; a regression fails the test there too, and JUnit agrees."""
    pytest.importorskip("xdist", reason="pytest-xdist is not installed")
    pytester.makepyfile(test_suite=SUITE)
    pytester.runpytest(*RUN, "--benchmark-autosave").assert_outcomes(passed=4)
    monkeypatch.setenv("SIZE", "1001")
    gate = ("--vram-compare", "--vram-compare-fail", "peak_above_start:0", "--junit-xml", "junit.xml")
    result = pytester.runpytest_subprocess(*RUN, "-n", "2", "--benchmark-autosave", *gate)
    failed = result.parseoutcomes()["failed"]
    assert failed in (1, 2)  # one worker's recording, or both
    assert f'failures="{failed}"' in Path(pytester.path / "junit.xml").read_text()
    result.stdout.fnmatch_lines(
        ["E *shared: peak_above_start 3.91 KiB (4,004 B), 4 B (0.10%) more than 3.91 KiB (4,000 B)*"]
    )
    assert peaks(runs(pytester)[1]) == {"shared": 4004, "test_suite.py::test_marked": 1024}


def test_a_regression_fails_its_test_until_it_is_accepted(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test that measured it, by its own line; saving the failing run does not make it the base, accepting does."""
    pytester.makepyfile(test_suite=SUITE)
    run = (*RUN, "-rs", "-k", "growth or peak", "--benchmark-autosave", "--vram-compare")
    new = pytester.runpytest(*run)
    new.assert_outcomes(passed=1, skipped=1)
    new.stdout.fnmatch_lines(["SKIPPED *new: no run has measured it; record it with --benchmark-autosave --vram-acc*"])
    monkeypatch.setenv("SIZE", "1050")
    for _ in range(2):
        result = pytester.runpytest(*run)
        result.assert_outcomes(passed=1, failed=1)
        result.stdout.fnmatch_lines(["E *MemoryRegression: shared: peak * B), 200 B * more than *"])
        assert "plugin/history.py" not in result.stdout.str().partition("short test summary")[0]
    pytester.runpytest(*run, "--vram-accept").assert_outcomes(passed=2)
    pytester.runpytest(*run).assert_outcomes(passed=2)
    assert cli.main(["compare", "--storage", f"{pytester.path}/.benchmarks"]) == 0


ENDS_ITS_OWN_WAY = """
    import os
    import pytest
    import torch
    SIZE = int(os.environ.get("SIZE", "1000"))
    def made(vram, name):
        vram.replay(lambda n: torch.zeros(SIZE), [1, 2], name=name, laps=3)
        return SIZE > 1000
    @pytest.fixture
    def early(vram):
        assert not made(vram, "set up")
    @pytest.fixture
    def late(vram):
        yield
        made(vram, "torn down")
    @pytest.mark.xfail
    def test_xfail(vram): assert not made(vram, "expected to fail")
    def test_skips(vram):
        if made(vram, "skipped"): pytest.skip("why")
    def test_fails(vram): assert not made(vram, "failed")
    def test_early(early): pass
    def test_late(late): pass
"""


def test_what_is_worse_than_its_base_is_said_however_its_test_ends(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A test that is skipped or fails for its own reasons keeps them, and its recording is a regression; one that is
    made while a test is torn down fails it."""
    pytester.makepyfile(ENDS_ITS_OWN_WAY)
    run = (*RUN, "--benchmark-autosave", "--vram-report", "report.json")
    pytester.runpytest(*run).assert_outcomes(passed=4, xpassed=1)
    monkeypatch.setenv("SIZE", "1050")
    worse = pytester.runpytest(*run, "--vram-compare", "--vram-compare-fail", "peak_above_start:0")
    worse.assert_outcomes(passed=1, failed=1, skipped=1, xfailed=1, errors=2)
    worse.stdout.fnmatch_lines(["E *MemoryRegression: torn down: peak_above_start *", "ERROR *::test_late*"])
    outcomes = {one.name: one.outcome for one in read_run(pytester.path / "report.json").recordings}
    names = ("expected to fail", "skipped", "failed", "set up", "torn down")
    assert outcomes == dict.fromkeys(names, "regression")


def test_a_test_that_another_plugin_skips_before_it_begins_is_skipped(pytester: pytest.Pytester) -> None:
    """Its setup never reaches this plugin: nothing was made, and nothing is compared."""
    pytester.makeconftest(
        """
        import pytest
        class Skips:
            @pytest.hookimpl(tryfirst=True)
            def pytest_runtest_setup(self, item): pytest.skip("before all others")
        def pytest_collection_finish(session): session.config.pluginmanager.register(Skips())
        """
    )
    pytester.makepyfile("def test_other(): pass")
    pytester.runpytest(*RUN, "--vram-compare").assert_outcomes(skipped=1)


TWICE = """
    import os
    import pytest
    import torch
    SIZE = int(os.environ.get("SIZE", "1000"))
    @pytest.fixture
    def earlier(vram): vram.replay(lambda n: torch.zeros(SIZE), [1, 2], name="twice", laps=3)
    def test_both(vram, earlier): vram.replay(lambda n: torch.zeros(10), [1, 2], name="twice", laps=1)
    def test_unnamed(vram): vram.replay(lambda n: torch.zeros(SIZE), [1, 2], laps=3)
"""


def test_two_recordings_of_one_name_in_one_test_are_both_compared(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second has a number in the history and in JUnit: it does not take the place of the first. The page finds the
    base of each, and lists what regressed there alone."""
    pytester.makepyfile(test_it=TWICE)
    run = (*RUN, "--benchmark-autosave", "--vram-report", "report.json", "--junit-xml", "junit.xml")
    pytester.runpytest(*run).assert_outcomes(passed=2)
    monkeypatch.setenv("SIZE", "1050")
    worse = pytester.runpytest(*run, "--vram-compare", "--vram-compare-fail", "peak_above_start:0")
    worse.assert_outcomes(failed=2)
    worse.stdout.fnmatch_lines(["E *MemoryRegression: twice: peak_above_start *, 200 B (5.00%) more than *"])
    assert [sorted(peaks(run)) for run in runs(pytester)] == [
        ["test_it.py::test_unnamed test_unnamed.<lambda>", "twice", "twice 2"]
    ] * 2
    junit = (pytester.path / "junit.xml").read_text()
    assert 'name="vram.twice.outcome" value="regression"' in junit
    assert 'name="vram.twice 2.outcome" value="peaks alone"' in junit
    page = gathered(read_run(pytester.path / "report.json"), store.read(f"file://{pytester.path}/.benchmarks"))
    beside = zip(page.run.recordings, page.bases.recordings, strict=True)
    named = {one.laps: judged and judged.entry.name for one, judged in beside if one.named}
    assert named == {3: "twice", 1: "twice 2"}
    assert [line for line in page.changes if "beside" in line] == []


def test_a_run_that_cannot_be_saved_says_so_and_tests_are_judged(pytester: pytest.Pytester) -> None:
    """No internal error: the tests' own outcome, and a line."""
    pytester.makepyfile(test_suite=SUITE)
    (pytester.path / ".benchmarks").write_text("not a folder")
    result = pytester.runpytest(*RUN, "--benchmark-save=x", "-k", "growth")
    result.assert_outcomes(passed=1)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["vram: history not saved in *.benchmarks: *"])


def test_out_of_memory_is_saved(pytester: pytest.Pytester) -> None:
    """As an entry of the same environment, so that it can be held against a run that was not."""
    pytester.makepyfile(
        """
        import torch
        def test_fits(vram):
            vram.replay(lambda _: torch.empty(2**60, dtype=torch.uint8), [0], name="huge")
        """
    )
    pytester.runpytest(*RUN, "--benchmark-autosave").assert_outcomes(failed=1)
    (run,) = runs(pytester)
    (entry,) = run.entries
    assert (entry.verdict, entry.channels) == ("out of memory", {})
    assert dict(entry.key)["source"] == "CPU tensors"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--vram-compare=9",), "--vram-compare: no run is called 9: there are none"),
        (
            ("--vram-compare", "test_suite.py"),
            "--vram-compare must name a run, or stand behind the tests, got *",
        ),
        (("--vram-compare-fail", "peak"), "--vram-compare: a criterion must be *, got 'peak'"),
    ],
)
def test_what_cannot_be_compared_is_a_usage_error(
    pytester: pytest.Pytester, arguments: tuple[str, ...], message: str
) -> None:
    """One line before anything is collected."""
    pytester.makepyfile(test_suite=SUITE)
    result: Any = pytester.runpytest(*RUN, *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {message}"])


def test_without_saving_or_comparing_nothing_is_touched(pytester: pytest.Pytester) -> None:
    """No benchmark is added, no table shown, no file written."""
    pytester.makepyfile(test_suite=SUITE)
    result = pytester.runpytest("--vram-device", "cpu")
    result.assert_outcomes(passed=4)
    assert "benchmark 'vram'" not in result.stdout.str()
    assert not list(pytester.path.glob(".benchmarks/*/*"))


def test_criteria_of_the_ini_file_alone_compare_nothing(pytester: pytest.Pytester) -> None:
    """They say what fails a comparison, and the project that has no base yet asked for none."""
    pytester.makepyfile(test_suite=SUITE)
    criteria = "-ovram_compare_fail=peak:2% growth:0"
    pytester.runpytest(*RUN, criteria).assert_outcomes(passed=4)
    pytester.runpytest(*RUN, criteria, "--vram-compare").assert_outcomes(passed=2, skipped=2)
    pytester.runpytest(*RUN, "--vram-compare-fail", "peak:2%").assert_outcomes(passed=2, skipped=2)


@pytest.mark.parametrize("gate", ["--vram-compare", "--vram-compare-fail=peak:0"])
def test_comparing_needs_pytest_benchmark(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, gate: str
) -> None:
    """A usage error that names the extra, before anything is measured; without the gate nothing is said."""
    pytester.makepyfile(test_suite=SUITE)
    pytester.makeconftest("")
    monkeypatch.setattr(store, "installed", lambda: False)
    pytester.runpytest("--vram-device", "cpu", "-p", "no:benchmark").assert_outcomes(passed=4)
    result = pytester.runpytest("--vram-device", "cpu", "-p", "no:benchmark", gate)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    line = "ERROR: --vram-compare needs pytest-benchmark: pip install 'himap-vram[[]history]'"
    result.stderr.fnmatch_lines([line])


def test_the_gate_on_times_is_of_times_alone(pytester: pytest.Pytester) -> None:
    """--benchmark-compare-fail judges a test's own benchmark, and no row that is there for its memory figures."""
    pytester.makepyfile(test_suite=SUITE, test_timed=TIMED)
    pytester.runpytest(*RUN, "--benchmark-autosave").assert_outcomes(passed=5)
    (file,) = pytester.path.glob(".benchmarks/*/0001_*.json")
    run = json.loads(file.read_text())
    for one in run["benchmarks"]:
        one["stats"]["min"] = 1e-12
    file.write_text(json.dumps(run))
    gate = ("--benchmark-autosave", "--benchmark-compare=0001", "--benchmark-compare-fail=min:5%")
    result = pytester.runpytest(*RUN, *gate, "--deselect", "test_timed.py")
    result.assert_outcomes(passed=4)
    assert result.ret == 0
    timed = pytester.runpytest(*RUN, *gate)
    assert timed.ret != 0
    timed.stderr.fnmatch_lines(["*Performance has regressed:*", "*test_timed*"])
    timed.stderr.no_fnmatch_line("*shared*")


MARKED = """
    import os
    import pytest
    import torch
    SIZE = int(os.environ.get("SIZE", "1000"))

    def work(): return torch.zeros(SIZE)

    @pytest.mark.vram_limit("1 GiB")
    def test_limited(): work()
    @pytest.mark.vram_leak_free
    def test_leak_free(): work()
"""


@pytest.mark.parametrize("device", ["cpu", "simulated"])
def test_a_marked_test_that_needs_more_than_its_base_names_the_line(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """Within its limits, and worse than before: the failure, the report and the comment say where."""
    where = "" if device == "cpu" else ', device="cuda"'
    pytester.makepyfile(test_suite=MARKED.replace("(SIZE)", f"(SIZE{where})"))
    run = ("--vram-device", device, "--benchmark-quiet", "--benchmark-autosave", "--vram-report", "r.json")
    pytester.runpytest_inprocess(*run).assert_outcomes(passed=2)
    monkeypatch.setenv("SIZE", "2000")
    result = pytester.runpytest_inprocess(*run, "--vram-compare")
    result.assert_outcomes(failed=2)
    line = "test_suite.py:6 work: aten.zeros float32 [2000]"
    result.stdout.fnmatch_lines(["E *alive at the peak*:", f"E *7.81 KiB in 1: {line.replace('[', '[[]')}"] * 2)
    run_ = read_run(pytester.path / "r.json")
    assert [test.outcome for test in run_.tests] == ["regression", "regression"]
    assert all(line in "\n".join(test.cause_lines) for test in run_.tests)
    saved = store.read(f"file://{pytester.path}/.benchmarks")
    comment = markdown(gathered(run_, saved))
    assert comment.count(line) == 4  # of each test what it has more, and what is alive
    result.stdout.fnmatch_lines(["E *, beside run 0001: +3.91 KiB at the peak: other +3.91 KiB"] * 2)
    result.stdout.fnmatch_lines([f"E *+3.91 KiB grew: {line.replace('[', '[[]')} (other), [[]1000] before"] * 2)
    for number, run in enumerate(saved.runs, 1):
        pieces = [(entry.in_pieces.whole if entry.in_pieces else ()) for entry in run.entries]
        assert [[piece.n_bytes for piece in one] for one in pieces] == [[number * 4000]] * 2


def test_a_marked_test_that_lets_go_of_what_was_there_has_no_pieces() -> None:
    """No breakdown where a test made more than its peak is above its start: nothing adds up to that."""
    made = [Allocation(100, "aten.zeros", (25,), "float32", (), 0)]
    assert body_in_pieces(made, 99) is None
    found = body_in_pieces(made, 130)
    assert found is not None
    assert (found.untraced_bytes, found.sample) == (30, None)
    assert from_json(found.compact()) == found
