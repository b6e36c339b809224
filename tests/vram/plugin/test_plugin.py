"""The pytest plugin, by running a real pytest inside."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path

import pytest
import torch

LEAK = """
    import torch
    KEPT = []
    def leak(n):
        KEPT.append(torch.zeros(256))
    def test_stable(vram):
        vram.assert_stable(vram.replay(leak, range(20), name="leaky"))
"""
CLEAN = """
    import torch
    def test_stable(vram):
        recording = vram.replay(lambda n: torch.zeros(n).sum(), range(1, 21), name="clean")
        vram.assert_stable(recording)
        vram.assert_peak(recording, "1 TiB")
"""
MARKED = """
    import pytest
    import torch
    @pytest.mark.vram_limit("0 B")
    def test_marked(): torch.zeros(256)
"""


# In-process runs find vram imported already; a run of its own does not, and is tested with every warning an error.
INI = "[pytest]\naddopts = -p no:asyncio\nfilterwarnings =\n    error\n    ignore::pytest.PytestAssertRewriteWarning\n"


@pytest.fixture(autouse=True)
def _own_ini(pytester: pytest.Pytester) -> None:
    pytester.makeini(INI)


NO_COMPILER = """
    import sys
    def test_compiler():
        assert "vram.torch_hooks.dispatch" in sys.modules
        assert "torch._dynamo" not in sys.modules
"""


def test_no_warnings_under_w_error_and_no_compiler(pytester: pytest.Pytester) -> None:
    """A whole run in a process of its own, every warning an error from the first import on. Takes over 5 s, as that
    process imports torch; PyTorch's own dispatch modes would import Dynamo too, which takes as long again."""
    pytester.makeini("[pytest]")
    pytester.makepyfile(test_clean=CLEAN, test_compiler=NO_COMPILER)
    options = ("-W", "error", "-p", "no:asyncio")  # which warns of a setting of its own
    pytester.runpytest_subprocess(*options, "--vram-device", "cpu").assert_outcomes(passed=2)


def test_a_three_line_test_gets_its_verdict(pytester: pytest.Pytester) -> None:
    """A clean step passes without any option, and the summary shows the figures and what they were measured with."""
    pytester.makepyfile(CLEAN)
    result = pytester.runpytest("--vram-device", "cpu")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        ["*= vram =*", "nothing needs attention: 1 stable", "measured: CPU tensors, torch *", "clean *stable*"]
    )
    result.stdout.fnmatch_lines(["not measured on a GPU:*"])


def test_a_leak_fails_its_test_with_bytes_and_first_sample(pytester: pytest.Pytester) -> None:
    """The failing test, not the summary, carries the finding."""
    pytester.makepyfile(LEAK)
    result = pytester.runpytest("--vram-device", "cpu")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*MemoryGrowth: leaky: live memory (requested) grows by 1,024 B a sample",
            "*since sample 0 of lap 0",
            "leaky *grows*",
        ]
    )


def test_inconclusive_is_a_skip_with_its_reason(pytester: pytest.Pytester) -> None:
    """Figures that are not there neither pass nor fail."""
    pytester.makepyfile(
        """
        def test_driver(vram):
            vram.assert_peak(vram.replay(lambda _: None, [0]), "1 GiB", channel="driver")
        """
    )
    result = pytester.runpytest("-rs", "--vram-device", "cpu")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED *inconclusive: driver was not measured*"])


UNDECIDED = """
    import torch
    CALLS, KEPT = [], []
    def once(n):
        CALLS.append(n)
        if len(CALLS) == 281:
            KEPT.append(torch.zeros(256))
        if len(CALLS) == 95:
            KEPT.append(torch.zeros(256))
    def test_stable(vram):
        vram.assert_stable(vram.replay(once, range(20)))
"""


def test_undecided_fails_unless_softened(pytester: pytest.Pytester) -> None:
    """It grew and nobody can say that it stops: a failure; `--vram-undecided skip`, or its ini twin, softens it."""
    pytester.makepyfile(UNDECIDED)
    pytester.runpytest("--vram-device", "cpu").assert_outcomes(failed=1)
    softened = pytester.runpytest("-rs", "--vram-device", "cpu", "--vram-undecided", "skip")
    softened.assert_outcomes(skipped=1)
    softened.stdout.fnmatch_lines(["SKIPPED *undecided: *"])
    pytester.makeini(INI + "vram_undecided = skip\n")
    pytester.runpytest("--vram-device", "cpu").assert_outcomes(skipped=1)


def test_an_option_comes_before_its_ini_twin_and_an_argument_before_both(pytester: pytest.Pytester) -> None:
    """Laps from the ini file are used; the option overrules them; `laps=` in the test overrules both."""
    pytester.makepyfile(
        """
        import os
        def test_laps(vram):
            assert vram.replay(lambda _: None, [0]).laps == int(os.environ["EXPECTED"])
            assert vram.replay(lambda _: None, [0], laps=3).laps == 3
        """
    )
    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as patched:
        patched.setenv("EXPECTED", "5")
        pytester.runpytest("--vram-device", "cpu").assert_outcomes(passed=1)
        pytester.makeini(INI + "vram_laps = 7\nvram_device = cpu\n")
        patched.setenv("EXPECTED", "7")
        pytester.runpytest().assert_outcomes(passed=1)
        patched.setenv("EXPECTED", "6")
        pytester.runpytest("--vram-laps", "6").assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--vram-laps", "two"), "--vram-laps must be a whole number of at least 1, got 'two'"),
        (("--vram-samples", "\u00b2"), "--vram-samples must be a whole number of at least 1, got '\u00b2'"),
        (("--vram-samples", "0"), "--vram-samples must be a whole number of at least 1, got '0'"),
        (("--vram-undecided", "maybe"), "--vram-undecided must be fail or skip, got 'maybe'"),
        (
            ("--vram-device", "gpu"),
            "--vram-device: device must be auto, cpu, cuda, mps, simulated or xpu, as in cuda:INDEX and simulated:CARD "
            "where one is meant, got 'gpu'",
        ),
    ],
)
def test_an_option_that_cannot_be_read_is_a_usage_error(
    pytester: pytest.Pytester, arguments: tuple[str, str], message: str
) -> None:
    """One line that says the rule and what came; exit code 4, as for any usage error of pytest."""
    pytester.makepyfile(CLEAN)
    result = pytester.runpytest(*arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert message in result.stdout.str() + result.stderr.str()


def test_the_report_holds_every_recording(pytester: pytest.Pytester) -> None:
    """`--vram-report` writes schema 1, also when a test fails; the folder is made."""
    pytester.makepyfile(test_leak=LEAK, test_clean=CLEAN)
    pytester.runpytest("--vram-device", "cpu", "--vram-report", "out/memory.json")
    report = json.loads((pytester.path / "out" / "memory.json").read_text())
    assert report["schema"] == 1
    assert sorted((mode["mode"], mode["verdict"]) for mode in report["modes"]) == [
        ("clean", "stable"),
        ("leaky", "grows"),
    ]


@pytest.mark.share(2)
@pytest.mark.parametrize("path", ["taken", "test_clean.py/memory.json"])
def test_a_report_that_cannot_be_written_is_a_line(pytester: pytest.Pytester, path: str) -> None:
    """A folder, or a file in its way: the tests are judged and told all the same, and nothing is left behind."""
    pytester.makepyfile(test_leak=LEAK, test_clean=CLEAN)
    pytester.mkdir("taken")
    result = pytester.runpytest("--vram-device", "cpu", "--vram-report", path, "-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*MemoryGrowth*", f"report not written: *{path.partition('/')[0]}*"])
    result.stdout.no_fnmatch_line("report: *")
    assert "Traceback" not in result.stdout.str() + result.stderr.str()
    assert [found.name for found in pytester.path.iterdir() if found.name.startswith(("taken", "memory"))] == ["taken"]


def test_figures_of_others_that_are_no_numbers_are_refused(pytester: pytest.Pytester) -> None:
    """Where they are noted, and not when the report is written."""
    pytester.makepyfile(
        """
        import numpy
        def test_note(vram):
            recording = vram.replay(lambda n: None, [1])
            vram.note(recording, softmax_peak_bytes=numpy.int64(3))
        """
    )
    result = pytester.runpytest("--vram-device", "cpu", "--vram-report", "memory.json")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*TypeError: softmax_peak_bytes must be a number or text of Python's own*int64(3)*"])
    assert (pytester.path / "memory.json").exists()


def test_session_fixtures_can_make_recordings(pytester: pytest.Pytester) -> None:
    """The fixture has session scope: one replay, judged by two tests, appears once."""
    pytester.makepyfile(
        """
        import pytest, torch
        @pytest.fixture(scope="session")
        def recording(vram):
            return vram.replay(lambda n: torch.zeros(n), [1, 2, 3], name="shared")
        def test_growth(vram, recording):
            vram.assert_stable(recording)
        def test_peak(vram, recording):
            vram.assert_peak(recording, 2**40)
        """
    )
    result = pytester.runpytest("--vram-device", "cpu")
    result.assert_outcomes(passed=2)
    assert result.stdout.str().count("\nshared") == 1


_MODELS = """
    import gc, pytest, torch, weakref
    MODELS, RECORDINGS = [], []

    @pytest.fixture(params=range(2))
    def model(vram):
        with vram.on_device():
            model = torch.nn.Linear(512, 512, device=vram.torch_device)
        MODELS.append(weakref.ref(model))
        return model

    def replayed(vram, model, keep):
        def step(n):
            with torch.inference_mode():
                keep(model(torch.zeros(n, 512, device=vram.torch_device)))
        return vram.replay(step, [1])

    @pytest.mark.parametrize("judged", [True, False])
    def test_stable(vram, model, judged):
        RECORDINGS.append(replayed(vram, model, keep=id))
        if judged:
            vram.assert_stable(RECORDINGS[-1])

    class Keeper:
        def keep(self, result):
            vars(self).setdefault("kept", []).append(result)

    def test_growing(vram, model):
        keeper = Keeper()
        keeper.recording = replayed(vram, model, keeper.keep)  # which holds the step, which holds the keeper
        assert vram.judge(keeper.recording)["requested"].status == "grows"

    def test_last():
        gc.collect()
        assert [seen() for seen in MODELS] == [None] * 6
"""


@pytest.mark.parametrize("device", ["cpu", pytest.param("simulated", marks=pytest.mark.full)])
def test_a_replayed_model_ends_with_its_test(pytester: pytest.Pytester, device: str) -> None:
    """No later test has it in its peaks: where nothing grew, though the recording is kept; else with the recording."""
    pytester.makepyfile(_MODELS)
    result = pytester.runpytest("--vram-device", device)
    result.assert_outcomes(passed=7)


def test_growth_is_explained_in_any_test_that_has_the_recording(pytester: pytest.Pytester) -> None:
    """Made by a session's factory in one test that only asks for the peak, judged and explained by another, twice."""
    pytester.makepyfile(
        """
        import gc, pytest, torch
        KEPT = []
        @pytest.fixture(scope="session")
        def recording_of(vram):
            made = {}
            def recording_of(mode):
                if mode not in made:
                    made[mode] = vram.replay(lambda n: KEPT.append(torch.zeros(n)), [10], name=mode)
                return made[mode]
            return recording_of
        def test_peak(vram, recording_of):
            vram.assert_peak(recording_of("leaky"), 2**40)
        @pytest.mark.parametrize("turn", [1, 2])
        def test_growth(vram, recording_of, turn):
            gc.collect()
            vram.assert_stable(recording_of("leaky"))
        """
    )
    result = pytester.runpytest("--vram-device", "cpu")
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(["*40 B a sample: test_growth_is_explained*.py:8 *", "*held by: list `KEPT`*"] * 2)


def test_budgets_are_new_then_accepted_then_enforced(pytester: pytest.Pytester) -> None:
    """New is a skip with the command; `--vram-accept` records; then it is exact, and only another accept changes it."""
    pytester.makepyfile(
        """
        import os, torch
        def test_peak(vram):
            size = int(os.environ["SIZE"])
            with torch.inference_mode():
                recording = vram.replay(lambda n: torch.zeros(size), [0, 1])
            vram.assert_peak(recording, vram.budget("budgets.toml", mode="himap"))
        """
    )
    with pytest.MonkeyPatch().context() as patched:
        run = ("--vram-device", "cpu", "-rs")
        patched.setenv("SIZE", "1000")
        new = pytester.runpytest(*run)
        new.assert_outcomes(skipped=1)
        new.stdout.fnmatch_lines(["*new: no budget himap in budgets.toml; record it with --vram-accept*"])
        assert not (pytester.path / "budgets.toml").exists()
        pytester.runpytest(*run, "--vram-accept").assert_outcomes(passed=1)
        recorded = (pytester.path / "budgets.toml").read_text()
        pytester.runpytest(*run).assert_outcomes(passed=1)
        patched.setenv("SIZE", "1001")
        pytester.runpytest(*run).assert_outcomes(failed=1)
        assert (pytester.path / "budgets.toml").read_text() == recorded
        pytester.runpytest(*run, "--vram-accept").assert_outcomes(passed=1)
        assert (pytester.path / "budgets.toml").read_text() != recorded


def test_out_of_memory_fails_the_test_and_is_in_the_summary(pytester: pytest.Pytester) -> None:
    """The mode that ran out of memory has a row of its own, with dashes for what was not measured."""
    pytester.makepyfile(
        """
        import torch
        def test_fits(vram):
            vram.replay(lambda _: torch.empty(2**60, dtype=torch.uint8), [0], name="huge")
        """
    )
    result = pytester.runpytest("--vram-device", "cpu")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*OutOfMemory: out of memory in sample 0 of lap 0, asking for 1,048,576.00 TiB, at *"])
    result.stdout.fnmatch_lines(["huge * out of memory *"])


def test_a_body_that_raises_reports_its_own_error(pytester: pytest.Pytester) -> None:
    """A ValueError inside the step fails the test as a ValueError."""
    pytester.makepyfile(
        """
        def test_body(vram):
            def step(_):
                raise ValueError("mine")
            vram.replay(step, [0])
        """
    )
    result = pytester.runpytest("--vram-device", "cpu")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E*ValueError: mine"])


def test_the_plugin_steps_aside(pytester: pytest.Pytester) -> None:
    """Disabled: users of the fixture are skipped, others run, marked or not. Unloaded: nothing of it is left."""
    pytester.makepyfile(test_with=CLEAN, test_marked=MARKED, test_without="def test_other(): pass")
    result = pytester.runpytest("--vram-disable", "-rs")
    result.assert_outcomes(passed=2, skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED *disabled by --vram-disable"])
    assert "vram:" not in result.stdout.str().replace("--vram-disable", "")
    assert "= vram =" not in result.stdout.str()
    unloaded = pytester.runpytest_subprocess("-p", "no:vram", "test_without.py")
    unloaded.assert_outcomes(passed=1)


def test_without_torch_the_fixture_skips_and_nothing_else_notices(pytester: pytest.Pytester) -> None:
    """No torch to import: a skip that says so, markers that ask nothing, and no warning."""
    pytester.makeconftest(
        """
        import importlib.util
        find = importlib.util.find_spec
        importlib.util.find_spec = lambda name, package=None: None if name == "torch" else find(name, package)
        """
    )
    without = {"test_with": CLEAN, "test_marked": MARKED}
    without = {
        name: text.replace("import torch", "").replace("torch.zeros(256)", "1") for name, text in without.items()
    }
    pytester.makepyfile(**without, test_without="def test_other(): pass")
    result = pytester.runpytest_subprocess("-rs", "-W", "error")
    result.assert_outcomes(passed=2, skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED *torch is not installed"])


def test_a_run_that_does_not_measure_imports_no_torch(pytester: pytest.Pytester) -> None:
    """Having the plugin installed costs other projects' test runs no import of torch."""
    pytester.makepyfile("import sys\ndef test_other():\n    assert 'torch' not in sys.modules\n")
    pytester.runpytest_subprocess().assert_outcomes(passed=1)


def test_only_the_plugin_knows_pytest(pytester: pytest.Pytester) -> None:
    """`import vram` outside pytest works and brings neither pytest nor torch."""
    code = "import sys, vram; assert not {'pytest', 'torch'} & set(sys.modules); print(vram.format_bytes(2048))"
    result = pytester.run(sys.executable, "-c", code)
    assert result.outlines == ["2.00 KiB"]


ACCEPTS = """
    import pytest
    @pytest.mark.parametrize("mode", ["a", "b", "c", "d"])
    def test_accept(vram, mode):
        assert vram.accept(vram.budget("budgets.toml", mode=mode), 4000).limit_bytes == 4080
"""


def test_a_worker_hands_its_figures_to_the_controller(pytester: pytest.Pytester, forked: None) -> None:
    """Under pytest-xdist the verdicts are the same; report, summary and JUnit hold every worker's figures.

    Two workers that accept budgets write one file: all are in it, with headroom; the controller shows one diff.
    """
    pytest.importorskip("xdist", reason="pytest-xdist is not installed")
    pytester.makepyfile(test_leak=LEAK, test_clean=CLEAN, test_marked=MARKED, test_accepts=ACCEPTS)
    options = ("--vram-device", "cpu", "--vram-report", "memory.json", "--junit-xml", "junit.xml", "--vram-accept=+2%")
    result = pytester.runpytest_subprocess("-n", "2", *options)
    result.assert_outcomes(passed=5, failed=2)
    report = json.loads(Path(pytester.path / "memory.json").read_text())
    assert sorted(mode["mode"] for mode in report["modes"]) == ["clean", "leaky"]
    assert [(test["test"], test["peak_bytes"]) for test in report["tests"]] == [("test_marked.py::test_marked", 1024)]
    assert report["environment"]["source"] == "CPU tensors"
    result.stdout.fnmatch_lines(["measured: CPU tensors, *", "test_marked.py::test_marked * peak 1,024 B over"])
    junit = Path(pytester.path / "junit.xml").read_text()
    assert '<property name="vram.peak_bytes" value="1024" />' in junit
    assert 'failures="2"' in junit
    budgets = tomllib.loads((pytester.path / "budgets.toml").read_text())["budget"]
    assert {one["mode"]: (one["peak_bytes"], one["headroom"]) for one in budgets} == dict.fromkeys("abcd", (4000, "2%"))
    result.stdout.fnmatch_lines(["budgets accepted in budgets.toml: 4 changed"])


OUTSIDE = """
    import torch
    from torch import nn
    def test_made_outside(vram): torch.zeros(3, device=vram.torch_device)
    def test_used_outside(vram):
        with vram.on_device():
            model = nn.Linear(4, 4).to(vram.torch_device)
        model(torch.zeros(1, 4))
    def test_inside(vram):
        with vram.on_device():
            torch.zeros(3, device=vram.torch_device)
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU answers")
def test_who_is_outside_of_a_simulated_card_is_told_where_it_is(pytester: pytest.Pytester, forked: None) -> None:
    """In a process of its own, as it once ended at the second, and no test after it ran."""
    pytester.makepyfile(OUTSIDE)
    result = pytester.runpytest_subprocess("--vram-device", "simulated:24GiB")
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(
        ["*The simulated card is there inside `with vram.on_device():`*", "*outside the simulation, where nothing is*"]
    )
