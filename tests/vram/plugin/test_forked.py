"""Tests that run in a process of their own, as pytest-forked has them: what they measure reaches the session."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

# What pytest-forked does, by pytest's own serialisation; with the option and the marker that it has.
FORKS = """
    import gc, json, os, sys
    import pytest, torch
    from _pytest.runner import runtestprotocol

    def pytest_addoption(parser):
        parser.addoption("--forked", action="store_true", dest="forked", default=False)

    def pytest_configure(config):
        config.addinivalue_line("markers", "forked: in a process of its own")

    def pytest_runtestloop():
        gc.freeze()  # else collecting in each process copies all that they share

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(item, nextitem):
        if not item.config.getvalue("forked") and not item.get_closest_marker("forked"):
            return None
        hook = item.config.hook
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        read, write = os.pipe()
        child = os.fork()
        if not child:
            reports = runtestprotocol(item, log=False)
            data = [hook.pytest_report_to_serializable(config=item.config, report=each) for each in reports]
            with open(write, "w") as file:
                json.dump(data, file)
            os._exit(0)
        os.close(write)
        with open(read) as file:
            text = file.read()
        os.waitpid(child, 0)
        report_of = hook.pytest_report_from_serializable
        reports = [report_of(config=item.config, data=each) for each in json.loads(text or "[]")]
        crashed = pytest.TestReport(item.nodeid, item.location, {}, "failed", "crashed", "???")
        for report in reports or [crashed]:
            item.ihook.pytest_runtest_logreport(report=report)
        item.session._setupstate.teardown_exact(nextitem)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    PARENT = os.getpid()
    def asked(*args):
        # That a child finds a device is what asking it is for; before the fork it would break CUDA in every child.
        print("asked for CUDA in", "the parent" if os.getpid() == PARENT else "a child", file=sys.__stderr__)
        return 0
    for name in ("is_available", "device_count"):
        setattr(torch.cuda, name, asked)
"""
TESTS = """
    import os
    import pytest, torch

    @pytest.fixture(scope="session")
    def shared(vram):
        return vram.replay(torch.zeros, [100, 200], laps=3, name="shared")

    def test_shared(vram, shared):
        vram.assert_stable(shared)

    def test_shared_peak(vram, shared):
        vram.assert_peak(shared, "1 B")

    @pytest.mark.vram_limit("1 KiB")
    def test_marked():
        torch.zeros(300)

    @pytest.mark.xfail
    def test_expected(vram):
        vram.assert_peak(vram.replay(torch.zeros, [100], laps=1, name="expected"), 1)

    def test_accepts(vram):
        budget = vram.budget("budgets.toml", mode="tiny")
        vram.assert_peak(vram.replay(torch.zeros, [100], laps=1, name="accepts"), budget)

    def test_crashes(vram):
        vram.replay(torch.zeros, [100], laps=1, name="lost")
        os._exit(3)

    def test_of_nothing(): pass
"""
PLUGINS = [f"-pno:{name}" for name in ("hypothesispytest", "anyio", "cacheprovider", "benchmark", "forked")]


def modes(path: Path) -> list[tuple[str, str]]:
    return sorted((mode["mode"], mode["outcome"]) for mode in json.loads(path.read_text())["modes"])


@pytest.fixture
def forks(pytester: pytest.Pytester, forked: None) -> pytest.Pytester:
    pytester.makeconftest(FORKS)
    pytester.makepyfile(TESTS)
    return pytester


def run(pytester: pytest.Pytester, *options: str) -> Any:
    return pytester.runpytest_subprocess("--vram-report", "r.json", *PLUGINS, *options)


RECORDINGS = [
    ("accepts", "peaks alone"),
    ("expected", "expected"),
    ("shared", "over limit"),
    ("shared", "stable"),
]


def test_recordings_of_forked_tests_reach_the_session(forks: pytest.Pytester) -> None:
    """Recordings, figures of markers, accepted budgets; what crashed is said; no CUDA before a fork."""
    result = run(forks, "--forked", "--vram-accept-force", "--vram-device", "auto")
    assert modes(forks.path / "r.json") == RECORDINGS
    report = json.loads((forks.path / "r.json").read_text())
    assert [test["peak_bytes"] for test in report["tests"]] == [1200]
    assert report["environment"]["torch"]
    result.stdout.fnmatch_lines_random(
        [
            "vram: auto, measured in the process of each test",
            "*budgets.toml*",
            "*vram: *::test_crashes: its process ended without a report, and what it measured is lost",
        ]
    )
    output = result.stdout.str() + result.stderr.str()
    assert "asked for CUDA in a child" in output
    assert "asked for CUDA in the parent" not in output


def test_a_forked_test_judges_what_its_session_recorded(pytester: pytest.Pytester, forked: None) -> None:
    """With the marker, for single tests: a recording made before the fork is judged after it, and listed once."""
    pytester.makeconftest(FORKS)
    pytester.makepyfile(
        TESTS.replace("def test_shared_peak", "@pytest.mark.forked\n    def test_shared_peak")
        + "\n    def test_again(vram, shared):\n        vram.assert_peak(shared, '1 MiB')\n"
    )
    run(pytester, "-k", "shared or again", "--vram-device", "cpu", "-p", "no:xdist")
    assert modes(pytester.path / "r.json") == [("shared", "over limit")]
    checks = json.loads((pytester.path / "r.json").read_text())["modes"][0]["checks"]
    assert [check["status"] for check in checks] == ["over", "passed"]


def test_forked_tests_of_workers(forks: pytest.Pytester) -> None:
    """Under pytest-xdist too, each once."""
    result = run(forks, "--forked", "-n", "1", "-k", "peak or marked or crashes", "--vram-device", "cpu")
    assert modes(forks.path / "r.json") == [("shared", "over limit")]
    result.stdout.fnmatch_lines("*vram: *::test_crashes: its process ended without a report, and * is lost")
