"""Limits on what a replay may cost, and its signs of life."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import vram
from vram.plugin import progress
from vram.recording import Recording
from vram.replaying import loop
from vram.replaying.limits import Progress
from vram.verdict.summarize import summarize


def leaking() -> Callable[[object], object]:
    kept: list[torch.Tensor] = []
    return lambda _: kept.append(torch.zeros(256))


def clean(_: object) -> object:
    return torch.zeros(256)


def slow_leak(seconds: float) -> Callable[[object], object]:
    leak = leaking()

    def step(sample: object) -> None:
        time.sleep(seconds)
        leak(sample)

    return step


def rising_slowly() -> Callable[[object], object]:
    """One kilobyte more every 23rd run: suspicious, and long undecided."""
    runs, kept = [0], list[torch.Tensor]()

    def step(_: object) -> None:
        torch.zeros(5000)
        runs[0] += 1
        if runs[0] % 23 == 0:
            kept.append(torch.zeros(256))

    return step


@pytest.mark.parametrize(
    ("limit", "runs", "words"),
    [({"max_runs": 130}, 120, "stopped after 120 runs: "), ({"max_seconds": 130}, 120, "stopped after 130 s: ")],
)
def test_a_suspicion_that_is_stopped_is_undecided(
    monkeypatch: pytest.MonkeyPatch, limit: dict[str, Any], runs: int, words: str
) -> None:
    """After the first look, before the second: what was known is said; no lap counts that was not finished."""
    step, clock = rising_slowly(), [0.0]
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def a_second(sample: object) -> None:
        step(sample)
        clock[0] += 1

    recording = vram.replay(a_second, range(20), **limit)
    assert (recording.runs, clock[0]) == (runs, 130 if "max_seconds" in limit else 120)
    with pytest.raises(vram.Undecided) as failure:
        vram.assert_stable(recording)
    first, second = str(failure.value).splitlines()[:2]
    assert "live memory (requested) undecided; so far " in first
    assert second.startswith(f"  {words}")
    assert "some sample ended above its lowest level" in second
    assert summarize(recording).outcome == "undecided"


def test_a_suspicion_that_went_away_before_the_stop_is_undecided_too() -> None:
    """The rule wanted more laps than ran: that the last ones were clean is said, and is no verdict."""
    kept: list[torch.Tensor] = []

    def step(sample: int) -> None:
        if len(runs) == 60:
            kept.append(torch.zeros(100))
        if len(runs) == 105:
            kept.clear()
        runs.append(sample)

    runs: list[int] = []
    recording = vram.replay(step, range(20), max_runs=145)
    assert recording.laps == 7
    with pytest.raises(vram.Undecided, match="stopped after 140 runs: every sample ended at its lowest level"):
        vram.assert_stable(recording)


def test_laps_before_the_first_look_prove_nothing() -> None:
    """Four clean laps of five: undecided, and nothing is run again to explain it."""
    ran: list[object] = []

    def step(sample: object) -> object:
        ran.append(sample)
        return clean(sample)

    recording = vram.replay(step, range(10), max_runs=49)
    assert (recording.laps, len(ran)) == (4, 40)
    with pytest.raises(
        vram.Undecided, match="stopped after 40 runs: 4 of 5 laps ran; every sample ended at its lowest"
    ):
        vram.assert_stable(recording)
    assert len(ran) == 40
    assert {verdict.status for verdict in vram.verdicts(recording).values()} == {"undecided"}


@pytest.mark.parametrize(("runs", "laps"), [(10, 1), (25, 2)])
def test_too_few_laps_have_no_figures_of_growth(runs: int, laps: int) -> None:
    """One lap or two are no verdict at all, and no rate is made up."""
    recording = vram.replay(clean, range(10), max_runs=runs)
    assert (recording.laps, vram.verdicts(recording)) == (laps, {})
    with pytest.raises(
        (vram.Undecided, vram.Inconclusive), match=f"after {laps * 10} runs: {laps} of 5 laps"
    ) as failure:
        vram.assert_stable(recording)
    assert failure.type is vram.Undecided  # an Inconclusive that gets through would only skip this test
    summary = summarize(recording)
    assert (summary.outcome, summary.bytes_per_sample, summary.growth_text) == ("undecided", None, "-")
    vram.assert_peak(recording, "1 TiB")  # every sample ran


@pytest.mark.parametrize("laps", [1, 5])
def test_samples_that_did_not_run_are_not_within_a_limit(laps: int) -> None:
    """Seven of ten: peaks and ratios of them are inconclusive where they would pass; one over its limit is over it."""

    def step(n: int) -> torch.Tensor:
        vram.mark("half-way")
        return torch.zeros(n * 1000)

    recording, whole = vram.replay(step, range(1, 11), laps=laps, max_runs=7), vram.replay(step, range(1, 11))
    assert (recording.laps, recording.samples, recording.not_run) == (1, 7, 3)
    assert [len(lap) for lap in recording.marks["half-way"]["requested"]] == [7]
    words = "stopped after 7 runs: 3 of 10 samples did not run"
    for check in (
        lambda: vram.assert_peak(recording, "1 TiB"),
        lambda: vram.assert_ratio(recording, whole, at_most=1),
        lambda: vram.assert_ratio(whole, recording, at_most=1),
    ):
        with pytest.raises(vram.Inconclusive, match=words):
            check()
    with pytest.raises(vram.PeakExceeded):
        vram.assert_peak(recording, recording.before["requested"] + 27_999)
    with pytest.raises(vram.Undecided, match=words):
        vram.assert_stable(recording)
    assert summarize(recording).outcome == "undecided"


def test_growth_that_is_proven_stays_proven() -> None:
    """A limit that is reached after conviction, or never, changes nothing."""
    convicted = vram.replay(leaking(), range(20), max_runs=10**6, max_seconds=3600)
    with pytest.raises(vram.MemoryGrowth):
        vram.assert_stable(convicted)
    recording = vram.replay(clean, range(10), max_runs=50)
    assert recording.stopped == ""
    vram.assert_stable(recording)


def test_one_run_is_always_made() -> None:
    """A limit shorter than the first sample: something is known."""
    recording = vram.replay(slow_leak(0.01), range(3), max_seconds=1e-6)
    assert (recording.runs, recording.not_run) == (1, 2)


@pytest.mark.parametrize(
    ("limit", "error", "message"),
    [
        ({"max_runs": 0}, ValueError, "max_runs must be above 0, got 0"),
        ({"max_runs": 2.5}, TypeError, "max_runs must be a whole number or None, got 2.5"),
        ({"max_seconds": -1}, ValueError, "max_seconds must be above 0, got -1"),
        ({"max_seconds": float("nan")}, ValueError, "max_seconds must be above 0, got nan"),
        ({"max_seconds": "60"}, TypeError, "max_seconds must be a number or None, got '60'"),
        ({"max_runs": True}, TypeError, "max_runs must be a whole number or None, got True"),
    ],
)
def test_a_limit_that_lets_nothing_run_is_refused(limit: dict[str, Any], error: type[Exception], message: str) -> None:
    """The error says what it must be, and what came; before anything runs."""
    ran: list[object] = []
    with pytest.raises(error, match=message):
        vram.replay(ran.append, [0], **limit)
    assert ran == []


def test_progress_is_reported_after_each_run_and_ends() -> None:
    """Runs so far, of how many, and why it goes on; None comes last, after a failure too."""
    heard: list[Progress | None] = []
    recording: Recording = vram.replay(leaking(), range(10), name="leaky", progress=heard.append)
    assert heard.pop() is None
    reported = [one for one in heard if one is not None]
    assert [one.runs for one in reported] == list(range(1, recording.runs + 1))
    assert (str(reported[0]), reported[49].why) == ("leaky: run 1 of 50, 0 s", "")
    assert reported[50].planned_runs > 50
    assert reported[50].why.startswith("requested: some sample ended above its lowest level")
    with pytest.raises(ZeroDivisionError):
        vram.replay(lambda n: 1 // n, [0], progress=heard.append)
    assert heard[-1] is None


SLOW = """
    import pytest, torch
    KEPT = []
    def leak(_):
        KEPT.append(torch.zeros(256))
    @pytest.fixture(scope="session")
    def recording(vram): return vram.replay(leak, range(5), name="leaky")
    def test_growth(vram, recording): vram.assert_stable(recording)
"""
AT_ONCE = """
    import pytest, vram.plugin.progress as progress
    progress._FIRST_SECONDS = progress._PLAIN_SECONDS = 0
"""
LIVE = """
    class Tty(int):  # a property of pytest 8, and a method of pytest 9
        __call__ = bool
    @pytest.hookimpl(trylast=True)
    def pytest_configure(config):
        config.pluginmanager.getplugin("terminalreporter").isatty = Tty(1)
"""


def test_a_slow_replay_shows_lines_in_a_log(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, forked: None
) -> None:
    """Past pytest's capture of file descriptors, and none of it in what was captured of the failing test."""
    monkeypatch.setenv("CI", "true")
    pytester.makeconftest(AT_ONCE + LIVE)
    pytester.makepyfile(SLOW)
    result = pytester.runpytest_subprocess("--vram-device", "cpu")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["vram: leaky: run 1 of 25, 0 s", "vram: leaky: run 26 of *: requested: some sample ended above*"]
    )
    assert "Captured" not in result.stdout.str()


def test_a_live_line_is_rewritten_and_erased(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal; under -q there is none."""
    monkeypatch.delenv("CI", raising=False)
    for name in ("_FIRST_SECONDS", "_LIVE_SECONDS"):
        monkeypatch.setattr(progress, name, 0)
    pytester.makeconftest("    import pytest" + LIVE)
    pytester.makepyfile(SLOW)
    result = pytester.runpytest("--vram-device", "cpu")
    result.assert_outcomes(failed=1)
    lines = [line for line in result.outlines if line.startswith("vram: leaky: run")]
    assert len(lines) > 25
    assert {len(line) for line in lines} == {79}  # each fills the line, and so hides the one before
    assert " " * 79 in result.outlines
    quiet = pytester.runpytest("--vram-device", "cpu", "-q")
    assert "vram: leaky" not in quiet.stdout.str()


def test_nothing_is_shown_before_ten_seconds(pytester: pytest.Pytester) -> None:
    """Most replays are over by then."""
    pytester.makepyfile(SLOW)
    assert "vram: leaky" not in pytester.runpytest("--vram-device", "cpu").stdout.str()


class Bare:
    """A configuration without a terminal, as in a worker of pytest-xdist; or with a reporter that lacks methods."""

    def __init__(self, **plugins: object) -> None:
        self.pluginmanager = SimpleNamespace(getplugin=plugins.get)

    def get_verbosity(self) -> int:
        return 0

    def get_terminal_writer(self) -> object:
        return object()


@pytest.mark.parametrize("plugins", [{}, {"terminalreporter": object()}])
def test_without_a_terminal_of_pytests_own_it_is_quiet(plugins: dict[str, object]) -> None:
    """A replay in a worker, or under another plugin's reporter, goes on as if nothing were."""
    tell = progress.TerminalProgress(Bare(**plugins))  # type: ignore[arg-type]
    tell(Progress("m", 1, 5, 60.0))
    tell(None)


def test_the_option_and_its_ini_twin(pytester: pytest.Pytester) -> None:
    """The argument comes before the option, and that before the ini file; a limit that can't be read is refused."""
    pytester.makepyfile(
        """
        import time
        def test_it(vram):
            seen = []
            def step(_):
                time.sleep(0.001)
                seen.append(1)
            vram.replay(step, [0], laps=100)
            assert len(seen) < 100
            assert vram.replay(step, [0], max_seconds=60).runs == 5
        """
    )
    pytester.makeini("[pytest]\nvram_max_seconds = 0.05\n")
    pytester.runpytest("--vram-device", "cpu").assert_outcomes(passed=1)
    failing = pytester.runpytest("--vram-device", "cpu", "--vram-max-seconds", "60")
    failing.stdout.fnmatch_lines(["E*assert 100 < 100"])
    refused = pytester.runpytest("--vram-device", "cpu", "--vram-max-seconds", "soon")
    assert refused.ret == pytest.ExitCode.USAGE_ERROR
    refused.stderr.fnmatch_lines(["ERROR: --vram-max-seconds must be a number above 0, got 'soon'"])
