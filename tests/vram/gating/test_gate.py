"""`vram gate` on small projects of strangers. pytest runs in this process, where the command would start one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.vram.gating.conftest import Stranger
from vram import cli

MODEL = """
import torch

def forward(batch):
    return torch.ones({size})
"""
TEST = """
import model

def test_memory(vram):
    recording = vram.replay(model.forward, [0, 1], name="forward", laps=3)
    vram.assert_stable(recording)

def test_plain():
    assert {plain}
"""


def suite(stranger: Stranger, size: int = 1000, plain: str = "True") -> None:
    """A model of that size, a test that measures it, and one that does not."""
    stranger.write("pytest.ini", "[pytest]\npythonpath = .\n")
    stranger.write("model.py", MODEL.format(size=size))
    stranger.write("tests/test_memory.py", TEST.format(plain=plain))


def test_from_the_first_run_to_a_regression(stranger: Stranger, monkeypatch: pytest.MonkeyPatch) -> None:
    """No base, then an accepted one, no regression, and a planted one: exit 1, and the comment names its line. Each run
    is kept in the rootdir's store, from wherever it is called."""
    suite(stranger)
    assert stranger.gate("tests")[:2] == (
        3,
        "vram gate: inconclusive: nothing to compare with; make a run of good code the base with vram gate "
        "--vram-accept",
    )
    assert stranger.gate("tests", "--vram-accept")[:2] == (
        0,
        "vram gate: accepted: this run is the recorded base from now on",
    )
    monkeypatch.chdir(stranger.root / "tests")
    fine = "no regression against the base (recorded), and the suite passed: nothing needs attention: 1 stable"
    assert stranger.gate()[:2] == (0, f"vram gate: {fine}")
    assert "and the suite passed" in Path("reports/memory.md").read_text(encoding="utf-8")
    monkeypatch.chdir(stranger.root)
    comment = stranger.root / "reports" / "memory.md"
    suite(stranger, size=1500)
    code, line, printed = stranger.gate("tests")
    assert code == 1
    assert line.startswith("vram gate: a regression was found against the base (recorded): 1 of 1 needs attention")
    assert "+2,000 B (+50.00%)" in printed
    text = comment.read_text(encoding="utf-8")
    assert text.startswith(line + "\n")
    assert "model.py:5 forward: aten.ones float32 [1500]" in text
    assert "1 regression" in (stranger.root / "reports" / "memory.html").read_text(encoding="utf-8")
    assert len(list(stranger.root.glob(".benchmarks/*/000*.json"))) == 4
    assert stranger.gate("tests", "--fail", "peak:50%", "--fail", "allocated_peak:50%")[0] == 0
    assert stranger.gate("tests", "--base", "nosuchrun")[:2] == (2, "vram gate: bad input: nothing was measured")
    assert not comment.read_text(encoding="utf-8").startswith(line)


def test_a_plain_failure_does_not_pass_and_is_no_regression(stranger: Stranger) -> None:
    """The verdict says what failed; the report is written all the same, and its figures are."""
    suite(stranger)
    assert stranger.gate("--vram-accept")[0] == 0
    suite(stranger, plain="False")
    assert stranger.gate()[:2] == (
        1,
        "vram gate: 1 test failed for a reason that is not memory, and no regression of memory was found: "
        "nothing needs attention: 1 stable",
    )
    report = json.loads((stranger.root / "reports" / "memory.json").read_text(encoding="utf-8"))
    assert (report["failed_besides"], report["interrupted"]) == (1, False)
    assert (stranger.root / "reports" / "memory.html").is_file()
    stranger.write("tests/test_broken.py", "import nosuchmodule\n")
    assert stranger.gate()[:2] == (
        2,
        "vram gate: bad input: the tests could not be collected: see the errors above",
    )
    assert stranger.gate("-k", "nosuchtest", "tests/test_memory.py")[:2] == (
        2,
        "vram gate: bad input: no test was collected, and nothing measured",
    )
    assert stranger.gate("--nosuchoption")[0] == 2
    assert not (
        stranger.root / "reports" / "memory.html"
    ).exists()  # that of an earlier run would be taken for this one's


def test_without_a_base_it_judges_alone(stranger: Stranger) -> None:
    """`--base none` saves nothing; a required recording that is not made is no pass; the files are those named."""
    suite(stranger)
    code, line, _ = stranger.gate("--base", "none", "--report", "out/r.json", "--report", "out/r.md")
    assert code == 0
    assert line == "vram gate: nothing needs attention: 1 stable; no budget is recorded for forward"
    assert not list(stranger.root.glob(".benchmarks/*/*"))
    assert sorted(path.name for path in (stranger.root / "out").iterdir()) == ["r.json", "r.md"]
    assert not (stranger.root / "reports").exists()
    assert stranger.gate("--base=none", "--require", "backward")[:2] == (
        3,
        "vram gate: inconclusive: no decision on backward",
    )
    assert stranger.gate("--report", "page.pdf")[2] == (
        "vram gate: --report must end in .json, .html or .md, got page.pdf\n"
    )


def test_what_can_not_be_judged_is_said(stranger: Stranger) -> None:
    """A suite that measures nothing, a folder where the report should be, a pytest that only lists: none is fine, and
    none is called what it is not."""
    stranger.write("tests/test_plain.py", "def test_plain(): pass\n")
    code, line, printed = stranger.gate()
    assert (code, line.partition(": ")[2].partition(": ")[2]) == (
        3,
        "nothing was measured: no test used the fixture vram or one of its markers",
    )
    assert "no run is called" not in printed
    code, _, printed = stranger.gate("--markers")
    assert code == 2
    assert printed.endswith("vram gate: nothing was judged: pytest wrote no report (reports/memory.json), see above\n")
    (stranger.root / "page.html").mkdir()
    code, _, printed = stranger.gate("--report", "page.html")
    assert code == 2
    assert printed.startswith("vram gate: page.html can't be written: ")


def test_the_ini_file_says_that_what_is_new_fails(stranger: Stranger) -> None:
    """As --vram-new does."""
    suite(stranger)
    assert stranger.gate("--vram-accept")[0] == 0
    stranger.write("pytest.ini", "[pytest]\npythonpath = .\nvram_new = fail\n")
    stranger.write("tests/test_more.py", TEST.format(plain="True").replace('forward", laps', 'backward", laps'))
    assert stranger.gate()[0] == 3
    assert stranger.gate("--vram-new=skip")[0] == 0


def test_in_ci_what_is_new_is_not_fine(stranger: Stranger, monkeypatch: pytest.MonkeyPatch) -> None:
    """There, a recording beside others that have a base is inconclusive until somebody accepts it."""
    suite(stranger)
    monkeypatch.setenv("CI", "true")
    assert stranger.gate("--vram-accept-force")[0] == 0
    test = TEST.format(plain="True").replace('forward", laps', 'backward", laps').replace("test_memory", "test_more")
    stranger.write("tests/test_more.py", test)
    code, line, _ = stranger.gate()
    assert code == 3
    assert line == (
        "vram gate: inconclusive: something is new or missing (see above); if it is meant, vram gate --vram-accept"
    )
    assert stranger.gate("--vram-new", "skip")[0] == 0


def test_a_gate_needs_its_store(stranger: Stranger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pytest-benchmark it says in one line what to install."""
    from vram.gating import gate

    monkeypatch.setattr(gate.importlib.util, "find_spec", lambda _: None)
    code, _, printed = stranger.gate()
    assert (code, printed) == (
        2,
        "vram gate: a gate needs pytest and pytest-benchmark: pip install 'himap-vram[history]'\n",
    )


def test_other_commands_take_no_other_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    """The gate passes on to pytest what it does not know; a command that starts none refuses it."""
    with pytest.raises(SystemExit) as end:
        cli.main(["compare", "--nosuch"])
    assert end.value.code == 2
    assert "unrecognized arguments: --nosuch" in capsys.readouterr().err
