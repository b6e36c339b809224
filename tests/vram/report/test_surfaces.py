"""Where figures go besides the terminal."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from vram.history.runs import History
from vram.plugin.measuring import worker_device
from vram.report.gathered import gathered
from vram.report.github import error_commands, job_summary
from vram.report.junit import properties as junit_properties
from vram.report.markdown import markdown
from vram.report.page import html
from vram.report.terminal import header, run_lines, table_of_tests
from vram.summary import Failure, MarkedSummary, RatioSummary, RecordingSummary, RunSummary, merged_environment
from vram.summary.reader import read_run
from vram.text import apart

MiB = 2**20


def test_the_header_says_what_is_absent_and_why() -> None:
    """Device, source, and the reason of every figure that will not be there."""
    line = header("cpu", "CPU tensors", {"driver": "no driver here"})
    assert line == "vram: cpu, measured with CPU tensors; not measured: driver: no driver here"
    assert header("cuda:1", "CUDA allocator", {}) == "vram: cuda:1, measured with CUDA allocator"


@pytest.mark.parametrize(
    ("device", "worker", "devices", "chosen"),
    [
        ("auto", "gw0", 2, "cuda:0"),
        ("auto", "gw3", 2, "cuda:1"),
        ("cuda", "gw5", 4, "cuda:1"),
        ("auto", "gw1", 1, "auto"),
        ("auto", "gw1", 0, "auto"),
        ("cpu", "gw1", 2, "cpu"),
        ("cuda:0", "gw1", 2, "cuda:0"),
        ("auto", None, 2, "auto"),
    ],
)
def test_each_worker_has_its_own_gpu(device: str, worker: str | None, devices: int, chosen: str) -> None:
    """Round robin by the worker's number; a device that was named stays, and so does a lone GPU."""
    assert worker_device(device, worker, devices) == chosen


def test_environments_of_workers_stand_side_by_side() -> None:
    """Tests that measure the same, and tests that differ with every value; in any number of workers."""
    workers: list[dict[str, object]] = [{"torch": "2", "source": f"cuda:{index % 2}"} for index in range(4)]
    assert merged_environment(workers) == {"torch": "2", "source": "cuda:0 and cuda:1"}
    assert merged_environment([]) == {}


def test_sizes_never_read_alike_when_they_differ() -> None:
    """To the byte where two digits would hide it, in sizes people read otherwise."""
    assert apart(48 * MiB + 1, 48 * MiB) == ("50,331,649 B", "50,331,648 B")
    assert apart(48 * MiB, 48 * MiB) == ("48.00 MiB", "48.00 MiB")
    assert apart(None, 2048) == ("-", "2.00 KiB")


def test_failed_tests_come_first_and_long_names_are_cut() -> None:
    """The terminal shows 20 tests, failures on top, ids cut in the middle."""
    passed = [MarkedSummary(f"t.py::test_{n}", peak_bytes=n * MiB, limit_bytes=99 * MiB) for n in range(30)]
    failed = MarkedSummary("t.py::test_" + 300 * "x" + "[last]", 2, limit_bytes=1, kept_bytes=7, allow_bytes=4)
    lines = table_of_tests(RunSummary(tests=[*passed, failed]).tests)
    assert "over limit: peak 1 B over, kept 3 B over" in lines[1]
    assert lines[1].startswith("t.py::test_xxx")
    assert "...xxx" in lines[1]
    assert "x[last] " in lines[1]
    assert max(map(len, lines)) < 190
    assert lines[2].startswith("t.py::test_29 ")
    assert lines[-1] == "and 11 more tests"


def test_a_failure_becomes_a_workflow_command() -> None:
    """One line for GitHub, whatever the message holds; the path as seen from the checkout; ten at most."""
    failure = Failure("test_a[1,2]", "sub/test_a.py", 7, "MemoryLeak", "50 %\nmore")
    lines = error_commands([failure] * 12, Path("/src/project"), Path("/src"))
    assert lines[0] == ("::error file=project/sub/test_a.py,line=7,title=MemoryLeak%3A test_a[1%2C2]::50 %25%0Amore")
    assert len(lines) == 10


def test_the_job_summary_is_markdown_that_no_name_breaks() -> None:
    """Tables whose cells hold any name, and each failure in its own words."""
    run = RunSummary(
        recordings=[RecordingSummary("a|b", laps=5, samples=2, reason="no meter", peak_bytes=1025)],
        tests=[MarkedSummary(f"t[{n}|<b>]", 0) for n in range(60)],
        failures=[Failure("test_a", "t.py", 1, "MemoryLeak", "line\n````\nline")],
    )
    text = job_summary(run)
    assert "| a\\|b | inconclusive | - | 1.00 KiB | - |" in text
    assert "| t[0\\|&lt;b>] | passed | 0 B | - | - | - |" in text
    assert "| and 10 more |" in text
    assert text.count("````") == 2


def test_absent_figures_are_no_properties() -> None:
    """A figure that was not measured is left out of JUnit: never 0, never -1."""
    ratios = (RatioSummary("base", 0.5, 0, "half"), RatioSummary("none", None, 0, "nothing"))
    one = RecordingSummary("m", laps=5, samples=2, bytes_per_sample=0.0, ratios=ratios)
    assert junit_properties([one], None) == {
        "vram.m.outcome": "inconclusive",
        "vram.m.bytes_per_sample": 0.0,
        "vram.m.laps": 5,
        "vram.m.samples": 2,
        "vram.m.ratio.base": 0.5,
    }
    assert "half" in run_lines(RunSummary(recordings=[one]))


SUITE = """
    import pytest, torch
    KEPT = []
    @pytest.fixture(scope="session")
    def recordings(vram):
        return [vram.replay(lambda n: torch.zeros(n * size), [1, 2], name=f"of {size}") for size in (256, 1024)]
    def test_level(vram, recordings):
        vram.assert_ratio(*recordings, at_most=0.3, besides_bytes=recordings[0].before["requested"])
    @pytest.mark.parametrize("long", [1], ids=["x" * 300])
    @pytest.mark.vram_leak_free
    def test_leak(long):
        KEPT.append(torch.zeros(256))
    def test_other(): pass
"""


def test_one_run_on_every_surface(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Header, summary, JUnit, JSON, annotations and job summary tell the same figures; ids of 300 characters too."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(pytester.path / "summary.md"))
    (pytester.path / "summary.md").write_text("before\n")
    path = pytester.makepyfile(SUITE)
    result = pytester.runpytest("--vram-device", "cpu", "--vram-report", "r.json", "--junit-xml", "j.xml")
    result.assert_outcomes(passed=2, failed=1)
    test = f"{path.name}::test_leak[{300 * 'x'}]"
    result.stdout.fnmatch_lines(
        [
            "vram: cpu, measured with CPU tensors*; not measured: *reserved: *",
            f"::error file={path.name},line=*,title=MemoryLeak*::vram_leak_free: the test keeps 1,024 B*%0A*KEPT*",
            "*= vram =*",
            "*over limit: kept 1,024 B over",
            "of 256 needs 0.250 x to 0.250 x the requested_peak of of 1024 (median 0.250 x, at most 0.3 allowed)",
        ]
    )
    report = json.loads((pytester.path / "r.json").read_text())
    (marked,) = report["tests"]
    figures = ("test", "kept_bytes", "allow_bytes", "verdict", "outcome")
    assert [marked[figure] for figure in figures] == [test, 1024, 0, "failed", "over limit"]
    assert report["modes"][0]["ratios"][0]["ratio"] == 0.25
    cases = ElementTree.parse(pytester.path / "j.xml").getroot().iter("testcase")  # noqa: S314 - our own file
    properties = {
        case.get("name"): {each.get("name"): each.get("value") for each in case.iter("property")} for case in cases
    }
    assert properties[f"test_leak[{300 * 'x'}]"]["vram.kept_bytes"] == "1024"
    assert properties["test_level"]["vram.of 256.ratio.of 1024"] == "0.25"
    assert properties["test_level"]["vram.of 1024.verdict"] == "stable"
    assert properties["test_other"] == {}
    summary = (pytester.path / "summary.md").read_text()
    assert summary.startswith("before\n## GPU memory: 1 of 3 needs attention: ")
    assert f"| {test} | over limit: kept 1,024 B over | 1.00 KiB | - | 1.00 KiB | 0 B |" in summary
    assert "| of 256 | stable | 0 B |" in summary


MARKED = """
    import pytest, torch
    @pytest.mark.vram_limit("1 MiB")
    def test_within():
        small = torch.zeros(256)
        large = small.repeat(4)
        assert large.numel() == 1024
    @pytest.mark.vram_leak_free
    def test_leak_free(): torch.zeros(512)
"""


@pytest.mark.parametrize("device", ["cpu", "simulated"])
def test_a_marked_test_is_broken_down_in_report_and_page(pytester: pytest.Pytester, device: str) -> None:
    """The peak is there by line, to the byte, where the run is broken down, though it is within its limits; modules and
    categories are said to be absent. The report reads back."""
    where = "" if device == "cpu" else ', device="cuda"'
    pytester.makepyfile(test_marked=MARKED.replace("(256)", f"(256{where})").replace("(512)", f"(512{where})"))
    options = ("--vram-device", device, "--vram-report", "r.json")
    pytester.runpytest_inprocess(*options, "--vram-breakdown").assert_outcomes(passed=2)
    data = json.loads((pytester.path / "r.json").read_text())["tests"]
    made = [[(piece["n_bytes"], piece["line"]) for piece in one["breakdown"]["pieces"]] for one in data]
    lines = [f"test_marked.py:{line}" for line in ("5 test_within", "4 test_within", "8 test_leak_free")]
    assert made == [[(4096, lines[0]), (1024, lines[1])], [(2048, lines[2])]]
    assert all(not {"by_category", "by_module"} & one["breakdown"].keys() for one in data)
    assert all(one["absent"].keys() == {"modules", "categories"} for one in data)
    run = read_run(pytester.path / "r.json")
    assert run.to_json()["tests"] == data
    page = html(gathered(run, History([])))
    assert all(f"<code>{line}</code>" in page for line in lines)
    assert page.count("modules, categories not measured: the body of a test runs once") == 2
    assert "outside modules" not in page
    pytester.runpytest_inprocess(*options).assert_outcomes(passed=2)
    assert not any(
        "breakdown" in one or "absent" in one for one in json.loads((pytester.path / "r.json").read_text())["tests"]
    )


def test_a_marked_test_says_why_it_has_no_breakdown() -> None:
    """As a recording does, on the terminal, in Markdown and on the page, with its name."""
    why = "following a test on a GPU would slow down what it measures"
    run = RunSummary(tests=[MarkedSummary("test_a", 8, absent={"breakdown": why}), MarkedSummary("test_b", 8)])
    line = f"breakdown not measured: {why} (test_a)"
    assert line in run_lines(run)
    page = gathered(run, History([]))
    assert line in page.not_measured
    assert line in html(page)


RATIO = """
    import torch
    WEIGHT = torch.ones(256, requires_grad=True)
    def ours(n): return WEIGHT.repeat(n).exp().square().exp().mean().item()
    def theirs(n): return torch.zeros(256 * (n if n > 8 else 1))
    def test_ratio(vram):
        one, other = (vram.replay(step, [4, 64], laps=1, name=step.__name__) for step in (ours, theirs))
        vram.assert_ratio(one, other, at_most=4, above_start=True)
"""


@pytest.mark.parametrize("broken_down", [False, True])
def test_a_ratio_says_the_same_on_every_surface(pytester: pytest.Pytester, *, broken_down: bool) -> None:
    """The lines and the way out of the sample whose ratio is over, which is not the highest one, as the error has
    them; with and without a breakdown of that one."""
    pytester.makepyfile(test_ratio=RATIO)
    options = ("--vram-device", "cpu", "--vram-report", "r.json", "--junit-xml", "j.xml")
    result = pytester.runpytest_inprocess(*options, *["--vram-breakdown"] * broken_down)
    result.assert_outcomes(failed=1)
    run = read_run(pytester.path / "r.json")
    (one,) = run.failing
    way_out, title, *lines = one.ratio_lines
    assert "less at the peak of sample 0: run the step under `torch.no_grad()`" in way_out
    assert title.startswith("alive at the peak of sample 0, run again with tracing: ")
    assert any("test_ratio.py:3 ours: aten.exp float32 [1024]" in line for line in lines)
    for line in (way_out, title, *lines):
        result.stdout.fnmatch_lines([f"E *{line.replace('[', '[[]')}"])
    texts = [each["text"] for each in one.suggestions]
    assert way_out.removeprefix("way out: ") in texts
    assert len(texts) == 1 + broken_down
    page = gathered(run, History([]))
    assert [line for line in page.explained if line.strip() in (way_out, title)] == [f"  {way_out}", f"  {title}"]
    assert html(page).count(title) == 2  # in the answer, and in the recording's section
    assert way_out.partition("`")[0] in html(page)
    assert "suggestion.graph kept" in (pytester.path / "j.xml").read_text()


WASTEFUL = """
    import torch
    WEIGHT, TOTAL = torch.ones(64, requires_grad=True), [0.0]
    def add_up(n):
        TOTAL[0] = TOTAL[0] + (WEIGHT * n).square().mean()
    def attend(n):
        mask = torch.ones(1, 1, n, n).expand(1, 8, n, n).contiguous()
        return (torch.ones(1, 8, n, n) + mask).sum()
    def test_limit(vram):
        vram.assert_peak(vram.replay(attend, [16, 32], name="attend"), "64 KiB", above_start=True)
    def test_within(vram):
        vram.assert_peak(vram.replay(attend, [16], name="small"), "1 MiB", above_start=True)
    def test_stable(vram):
        vram.assert_stable(vram.replay(add_up, range(1, 21), name="add up"))
"""


def test_a_way_out_is_on_every_surface(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """The failure, annotation, job summary, JUnit, JSON, comment and page of a peak over its limit, and of what grows,
    have the sentence; the outcome is what it would be without."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(pytester.path / "summary.md"))
    path = pytester.makepyfile(WASTEFUL)
    result = pytester.runpytest("--vram-device", "cpu", "--vram-report", "r.json", "--junit-xml", "j.xml")
    result.assert_outcomes(passed=1, failed=2)
    of_peak = (
        "28,672 B (28.00 KiB) less at the peak of sample 1: pass it expanded, without the copy: "
        "a tensor [1, 1, 32, 32] is copied out to [1, 8, 32, 32] "
        f"({path.name}:6 attend), and what reads it broadcasts"
    )
    of_growth = (
        "256 B a sample less: run the step under `torch.no_grad()`, or keep `.detach()` or `.item()` of what it makes: "
        "the autograd graph of every sample hangs on list `TOTAL` (1 item), and no backward pass runs"
    )
    run = read_run(pytester.path / "r.json")
    suggestions = (
        {"pattern": "graph of every sample", "text": of_growth, "saves_bytes_per_sample": 64 * 4},
        {"pattern": "expanded mask", "text": of_peak, "saves_bytes": 7 * 32 * 32 * 4},  # the small one lives on
    )
    annotations = "\n".join(line for line in result.outlines if line.startswith("::error"))
    page = gathered(run, History(()))
    for suggestion in suggestions:
        text = str(suggestion["text"])
        assert f"E         way out: {text}" in result.outlines
        assert f"way out: {text}" in annotations
        assert f"way out: {text}" in (pytester.path / "summary.md").read_text()
        assert f'suggestion.{suggestion["pattern"]}" value="{text}"' in (pytester.path / "j.xml").read_text()
        in_comment = f"  way out: {text}"[:160].replace("`", "'")  # lines of a comment are cut
        assert in_comment in markdown(page)
        assert f"way out: {text}" in html(page)
        assert html(page).count(f"way out: {text[:50]}") == 2  # in the answer, which is cut, and of the recording
    report = json.loads((pytester.path / "r.json").read_text())
    expected = [[suggestions[0]], [suggestions[1]], []]
    assert [mode.get("suggestions", []) for mode in report["modes"]] == expected
    assert [one.suggestions for one in run.recordings] == expected
    assert [one.outcome for one in run.recordings] == ["grows", "over limit", "stable"]


def test_a_job_summary_that_cannot_be_written_is_reported(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run's own outcome stands."""
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(pytester.path / "missing" / "summary.md"))
    pytester.makepyfile("import pytest\n@pytest.mark.vram_limit('1 B')\ndef test_it(): pass\n")
    result = pytester.runpytest("--vram-device", "cpu")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["job summary not written: *summary.md*"])


def test_a_worker_measures_on_its_own_gpu(pytester: pytest.Pytester) -> None:
    """With a stand-in for two GPUs, worker gw3 has cuda:1, made current before the first test."""
    pytester.makeconftest(
        """
        import pytest, torch
        @pytest.hookimpl(tryfirst=True)
        def pytest_configure(config):
            config.workerinput = {"workerid": "gw3"}
        chosen = []
        @pytest.fixture
        def current():
            return chosen
        patch = pytest.MonkeyPatch()
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "device_count", lambda: 2)
        patch.setattr(torch.cuda, "set_device", chosen.append)
        def pytest_unconfigure():
            patch.undo()
        """
    )
    pytester.makepyfile(
        """
        def test_before(current): assert current == ["cuda:1"]
        def test_device(vram): assert vram.device == "cuda:1"
        """
    )
    quiet = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:benchmark")  # no header: no GPU is read
    pytester.runpytest(*quiet).assert_outcomes(passed=2)
