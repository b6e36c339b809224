"""Headroom: room above the recorded figure, stored beside it, and said wherever the limit is."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path

import pytest

from vram.budgets.accepted import Accepted, diff, merged, reconciled, record
from vram.budgets.file import Budget, accept, read_budget
from vram.budgets.headroom import RULE, Headroom, parse_headroom

RUN = ("--vram-device", "cpu", "-p", "no:benchmark")
SUITE = """
    import os, pytest, torch
    @pytest.mark.parametrize("model", ["a", "b"])
    def test_peak(vram, model):
        size = int(os.environ.get("SIZE", "1000"))
        with torch.inference_mode():
            recording = vram.replay(lambda n: torch.zeros(size), [0], laps=1, name=model)
        vram.assert_peak(recording, vram.budget("budgets.toml", model=model), above_start=True)
"""
A, B = "test_suite.py::test_peak[a]", "test_suite.py::test_peak[b]"


@pytest.mark.parametrize(
    ("text", "stored", "limit_bytes"),
    [
        ("+2%", "2%", 1020),
        ("2 %", "2%", 1020),
        ("+0.25%", "0.25%", 1002),  # 1002.5, down: the limit is never above what is written
        ("+12.5%", "12.5%", 1125),
        ("+64MiB", "64 MiB", 1000 + 64 * 2**20),
        ("+1.5 KiB", "1.5 KiB", 2536),
        ("+0%", "0%", 1000),
    ],
)
def test_a_headroom_is_a_share_of_the_figure_or_a_size(text: str, stored: str, limit_bytes: int) -> None:
    """To the byte, and never rounded up."""
    headroom = parse_headroom(text)
    assert (headroom.text, headroom.above(1000)) == (stored, limit_bytes)


@pytest.mark.parametrize(
    "text",
    ["", "+", "2", "+2", "-2%", "+-2%", "++2%", "+2%%", "+2 GB", "+nan%", "+1e3%", "+99999%", "+0.3 KiB", "64 mib"],
)
def test_what_is_no_headroom_is_refused(text: str) -> None:
    """With the rule and the text that came."""
    with pytest.raises(ValueError, match=r"a headroom must be .* got "):
        parse_headroom(text)


def test_a_headroom_is_stored_beside_the_figure(tmp_path: Path) -> None:
    """Written, kept by a plain accept, replaced by another, ended by 0%; nothing else of the file changes."""
    path = tmp_path / "b.toml"
    before = (
        '# ours\n\n[[budget]]  # the unet\nmodel = "unet"\npeak_bytes = 1_000  # since June\n\n[notes]\ntext = "x"\n'
    )
    path.write_text(before)
    plain = accept(read_budget(path, model="unet"), 1000)
    assert path.read_text() == before
    assert (plain.limit_bytes, plain.recorded_bytes, plain.headroom) == (1000, 1000, None)

    two = parse_headroom("+2%")
    given = accept(read_budget(path, model="unet"), 1000, two)
    assert path.read_text() == before.replace("since June\n", 'since June\nheadroom = "2%"\n')
    assert given == read_budget(path, model="unet") == Budget(path, {"model": "unet"}, 1000, two)
    assert given.limit_bytes == 1020

    again = accept(read_budget(path, model="unet"), 2000)
    assert (again.recorded_bytes, again.limit_bytes) == (2000, 2040)
    other = accept(again, 2000, parse_headroom("+1KiB"))
    assert other.limit_bytes == 3024
    assert 'peak_bytes = 2000  # since June\nheadroom = "1 KiB"\n' in path.read_text()
    none = accept(other, 2000, parse_headroom("+0%"))
    assert (none.limit_bytes, none.headroom_text) == (2000, "")

    accept(read_budget(path, model="bert"), 5, two)
    assert '[[budget]]\nmodel = "bert"\npeak_bytes = 5\nheadroom = "2%"\n\n[[budget]]  # the unet' in path.read_text()


@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_line_ends_stay(tmp_path: Path, end: str) -> None:
    """A file from Windows keeps its line ends, and a last line without any is no trouble."""
    path = tmp_path / "b.toml"
    path.write_bytes(f'[[budget]]{end or chr(10)}model = "a"{end or chr(10)}peak_bytes = 7{end}'.encode())
    accept(read_budget(path, model="a"), 8, parse_headroom("5%"))
    assert path.read_bytes().endswith(f'peak_bytes = 8{end or chr(10)}headroom = "5%"{end}'.encode())
    assert read_budget(path, model="a").limit_bytes == 8


@pytest.mark.parametrize("value", ['"2 GB"', "true", "-1", "[1]", '""', "1.5"])
def test_a_file_with_a_headroom_that_is_none_is_refused(tmp_path: Path, value: str) -> None:
    """The error names it; a guess would be a limit that nobody reviewed."""
    path = tmp_path / "b.toml"
    path.write_text(f'[[budget]]\nmodel = "a"\npeak_bytes = 7\nheadroom = {value}\n')
    with pytest.raises(ValueError, match=r"a headroom must be .* in .*b\.toml"):
        read_budget(path, model="a")


def test_a_key_cannot_be_called_headroom(tmp_path: Path) -> None:
    """It would be read back as another thing."""
    with pytest.raises(ValueError, match="key must not have headroom"):
        read_budget(tmp_path / "b.toml", headroom="2%")


def test_two_processes_keep_the_headroom(tmp_path: Path) -> None:
    """Where they accepted different figures for one budget, and the file gets the largest."""
    path, two = tmp_path / "b.toml", parse_headroom("+2%")
    _, first = record(read_budget(path, model="a"), 1000, headroom=two)
    _, second = record(read_budget(path, model="a"), 900, headroom=two)
    assert reconciled([first, second]) == merged([first, second])
    assert read_budget(path, model="a") == Budget(path, {"model": "a"}, 1000, two)
    _, third = record(read_budget(path, model="a"), 1000)
    assert diff([third], tmp_path) == ["budgets accepted in b.toml: 0 changed, 1 as before"]


def test_the_diff_says_the_headroom(tmp_path: Path) -> None:
    """A column more, only where there is one; a headroom that changed alone is a change."""
    path = str(tmp_path / "b.toml")
    changes = [
        Accepted(path, {"model": "a"}, 1000, 1000, headroom="2%", headroom_before=""),
        Accepted(path, {"model": "b"}, None, 2000, headroom="2%", headroom_before=""),
        Accepted(path, {"model": "c"}, 5, 5, headroom="2%", headroom_before="2%"),
    ]
    assert diff(changes, tmp_path) == [
        "budgets accepted in b.toml: 2 changed, 1 as before",
        "  budget  before   now       change  headroom  limit",
        "  a       1,000 B  1,000 B   +0 B    2%        1,020 B",
        "  b       new      1.95 KiB  -       2%        1.99 KiB",
    ]


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makepyfile(test_suite=SUITE)
    return pytester


def test_accept_with_headroom(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """The option behind `=`, before the tests' paths as before; then the limit is said as figure and headroom."""
    accepted = suite.runpytest(*RUN, "--vram-accept=+2%", A)
    accepted.assert_outcomes(passed=1)
    accepted.stdout.fnmatch_lines(["budgets accepted in budgets.toml: 1 changed", "  a *new *3.91 KiB *2% *3.98 KiB"])
    assert tomllib.loads((suite.path / "budgets.toml").read_text())["budget"] == [
        {"model": "a", "peak_bytes": 4000, "headroom": "2%"}
    ]
    monkeypatch.setenv("SIZE", "1020")
    within = suite.runpytest(*RUN, A, "--vram-report", "r.json", "--junit-xml", "r.xml")
    within.assert_outcomes(passed=1)
    within.stdout.fnmatch_lines(["a *3.98 KiB  3.98 KiB (+2%) *peaks alone*"])
    mode = json.loads((suite.path / "r.json").read_text())["modes"][0]
    assert (mode["limit_bytes"], mode["budget_bytes"], mode["limit_headroom"]) == (4080, 4080, "2%")
    assert mode["checks"][0]["text"] == "requested_peak 3.98 KiB of 3.98 KiB allowed, the recorded 4,000 B + 2%"
    assert 'name="vram.a.limit_headroom" value="2%"' in (suite.path / "r.xml").read_text()
    monkeypatch.setenv("SIZE", "1021")
    over = suite.runpytest(*RUN, A)
    over.assert_outcomes(failed=1)
    over.stdout.fnmatch_lines(["*is 4 B over the allowed 4,080 B (3.98 KiB), the recorded 4,000 B + 2%*"])
    again = suite.runpytest(*RUN, "--vram-accept", A)
    again.assert_outcomes(passed=1)
    assert read_budget(suite.path / "budgets.toml", model="a").limit_bytes == 4084 + 81


@pytest.mark.parametrize("value", ["2%", "", "+", "junk", "test_suite.py", "+2GB", "+5%%"])
def test_a_headroom_that_cannot_be_read_is_a_usage_error(suite: pytest.Pytester, value: str) -> None:
    """In one line, with the rule, and nothing runs."""
    result = suite.runpytest(*RUN, f"--vram-accept={value}", A)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert result.stderr.lines[-1] == "" or len([line for line in result.errlines if line]) == 1
    result.stderr.fnmatch_lines([f"ERROR: --vram-accept: {RULE}, got *"])
    assert not (suite.path / "budgets.toml").exists()


def test_headroom_comes_from_wherever_options_come(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """From PYTEST_ADDOPTS, from an ini file's addopts; the last one counts. CI refuses."""
    monkeypatch.setenv("PYTEST_ADDOPTS", "--vram-accept=+1%")
    suite.runpytest(*RUN, A).assert_outcomes(passed=1)
    monkeypatch.delenv("PYTEST_ADDOPTS")
    assert read_budget(suite.path / "budgets.toml", model="a").limit_bytes == 4040
    suite.makeini("[pytest]\naddopts = --vram-accept=+5%\n")
    suite.runpytest(*RUN, A, "--vram-accept=+64MiB").assert_outcomes(passed=1)
    assert read_budget(suite.path / "budgets.toml", model="a").headroom == Headroom("64 MiB")
    suite.runpytest(*RUN, B).assert_outcomes(passed=1)
    assert read_budget(suite.path / "budgets.toml", model="b").headroom == Headroom("5%")
    (suite.path / "arguments.txt").write_text("--vram-accept=+6%\n")
    suite.runpytest(*RUN, B, "@arguments.txt").assert_outcomes(passed=1)
    assert read_budget(suite.path / "budgets.toml", model="b").headroom == Headroom("6%")
    monkeypatch.setenv("CI", "true")
    refused = suite.runpytest(*RUN, B, "-o", "addopts=", "--vram-accept=+7%")
    refused.stderr.fnmatch_lines(["*--vram-accept: CI=true is set*"])
    suite.runpytest(*RUN, B, "--vram-accept-force").assert_outcomes(passed=1)
    assert read_budget(suite.path / "budgets.toml", model="b").headroom == Headroom("5%")


def test_the_plugin_may_be_given_as_an_object(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """To `pytest.main`, which registers it before it has read an ini file."""
    pytester.makeini("[pytest]\naddopts = -q\n")
    pytester.makepyfile("def test_one(pytestconfig): assert pytestconfig.getoption('--vram-accept') == '+2%'")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    code = "import pytest, vram.plugin as p; raise SystemExit(pytest.main(['--vram-accept=+2%'], plugins=[p]))"
    assert pytester.run(sys.executable, "-c", code).ret == 0


def test_a_relative_path_begins_at_rootdir(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """From whichever folder pytest is started, and new is not passed: a file that is elsewhere is not made up."""
    pytester.makeini("[pytest]\n")
    folder = pytester.mkdir("deep")
    (folder / "test_deep.py").write_text(
        "def test_peak(vram): assert vram.accept(vram.budget('sub/budgets.toml', model='a'), 7).limit_bytes == 7\n"
    )
    monkeypatch.chdir(folder)
    pytester.runpytest(*RUN, "--vram-accept").assert_outcomes(passed=1)
    assert read_budget(pytester.path / "sub" / "budgets.toml", model="a").limit_bytes == 7
    assert [path.name for path in folder.iterdir() if path.suffix == ".toml"] == []


def test_facts_say_where_it_runs(pytester: pytest.Pytester) -> None:
    """Device and PyTorch's version, for a budget's key; a simulated card by its name."""
    pytester.makepyfile(
        """
        import torch
        def test_facts(vram):
            torch_facts = {"torch": ".".join(torch.__version__.split(".")[:2])}
            device = "simulated RTX 4090" if vram.device.startswith("simulated") else "cpu"
            assert dict(vram.facts) == {"device": device, **torch_facts}
            key = vram.budget("budgets.toml", **vram.facts, model="unet").key
            assert list(key) == ["device", "torch", "model"]
        """
    )
    pytester.runpytest(*RUN).assert_outcomes(passed=1)
    pytester.runpytest("--vram-device", "simulated", "--vram-card", "rtx 4090", "-p", "no:benchmark").assert_outcomes(
        passed=1
    )
