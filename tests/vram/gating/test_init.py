"""`vram init`: what it writes works as it is, and nothing that exists is touched."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from tests.vram.gating.conftest import QUICK, Stranger
from vram import __version__, cli

TABLE = """[tool.pytest.ini_options]
vram_device = "auto" # or "cuda", "cpu", and "simulated" with vram_card = "24GiB": a card without a GPU
vram_report = "reports/memory.json" # `vram report` makes a page of it
"""
OPTIONS = {"vram_device": "auto", "vram_report": "reports/memory.json"}
FILES = ["tests/test_memory.py", "budgets.toml", "pyproject.toml", ".github/workflows/memory.yml"]


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_it_works_as_it_is_and_finds_what_is_planted(stranger: Stranger, monkeypatch: pytest.MonkeyPatch) -> None:
    """pytest passes, in CI too; the gate has a base, then no regression; a planted leak fails it, and a planted peak
    does, with the line in the comment."""
    code, line, printed = stranger.command("init")
    assert (code, line) == (0, "next: vram gate tests/test_memory.py --vram-accept")
    assert printed.splitlines()[:-1] == [f"written: {name}" for name in FILES]
    monkeypatch.setenv("CI", "true")
    result = stranger.pytester.runpytest_inprocess(*QUICK)
    result.assert_outcomes(passed=1)
    monkeypatch.delenv("CI")
    assert stranger.gate("tests/test_memory.py", "--vram-accept")[0] == 0
    budget = tomllib.loads((stranger.root / "budgets.toml").read_text(encoding="utf-8"))["budget"]
    assert budget[0]["peak_bytes"] < 3 * 2**20  # what it needs, and no guess any more
    assert stranger.gate()[0] == 0

    test = stranger.root / "tests" / "test_memory.py"
    good = test.read_text(encoding="utf-8")
    planted = good.replace("return model(", "KEPT.append(torch.ones(batch, 256))\n            return model(")
    test.write_text(planted.replace("import torch\n", "import torch\n\nKEPT = []\n"), encoding="utf-8")
    code, line, _ = stranger.gate()
    assert code == 1
    assert "found by the suite: 1 of 1 needs attention: 1 grows" in line
    comment = stranger.root / "reports" / "memory.md"
    assert "held by: list 'KEPT'" in comment.read_text(encoding="utf-8")

    test.write_text(good.replace("torch.ones(batch, 256,", "torch.ones(2 * batch, 256,"), encoding="utf-8")
    number = next(n for n, each in enumerate(test.read_text(encoding="utf-8").splitlines(), 1) if "2 * batch" in each)
    code, line, _ = stranger.gate()
    assert code == 1
    assert "1 over limit" in line
    assert f"tests/test_memory.py:{number} step: aten.ones float32 [64, 256]" in comment.read_text(encoding="utf-8")


def test_a_second_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 0, and it says so; nor does it touch what somebody changed since."""
    assert cli.main(["init", str(tmp_path)]) == 0
    (tmp_path / "budgets.toml").write_text("# ours\n")
    before = contents(tmp_path)
    capsys.readouterr()
    assert cli.main(["init", str(tmp_path)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "nothing to write: it is all there, or left to you"
    assert said[1:5] == [
        "left alone: tests/test_memory.py is there",
        "left alone: budgets.toml is there",
        "left alone: pyproject.toml configures pytest",
        "left alone: .github/workflows/memory.yml is there",
    ]
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "before",
    [
        "",
        "[project]\nname = 'a'",
        "[project]\nname = 'a'\n",
        "[tool.ruff]\nline-length = 99 # ours\n\n",
        "[project]\r\nname = 'a'\r\n",
        "a.b = 1\n[tool]\n[tool.black]\n",
        "# nothing\n",
    ],
)
def test_options_are_added_at_the_end(tmp_path: Path, before: str) -> None:
    """Each byte that was there is there still, and the file is TOML that says what it said, and the options."""
    path = tmp_path / "pyproject.toml"
    path.write_bytes(before.encode())
    assert cli.main(["init", str(tmp_path)]) == 0
    after = path.read_bytes()
    assert after.startswith(before.encode())
    assert after.endswith(TABLE.replace("\n", "\r\n" if "\r\n" in before else "\n").encode())
    assert after.count(b"\r\n") in (0, after.count(b"\n"))
    data = tomllib.loads(after.decode())
    assert data["tool"].pop("pytest") == {"ini_options": OPTIONS}
    assert {"tool": {}, **data} == {"tool": {}, **tomllib.loads(before)}


@pytest.mark.parametrize(
    ("files", "where", "to_add"),
    [
        ({"pyproject.toml": "[tool.pytest.ini_options]\naddopts = '-q'\n"}, "pyproject.toml", 2),
        ({"pyproject.toml": "[tool.pytest.ini_options]\nvram_device = 'cpu'\n"}, "pyproject.toml", 1),
        ({"pyproject.toml": "[tool.pytest]\naddopts = ['-q']\n"}, "pyproject.toml", 2),
        ({"pyproject.toml": "tool.pytest.ini_options.addopts = '-q'\n"}, "pyproject.toml", 2),
        ({"pytest.ini": "", "pyproject.toml": "[tool.ruff]\n"}, "pytest.ini", 2),
        ({".pytest.ini": "[pytest]\nvram_report = r.json\n"}, ".pytest.ini", 1),
        ({"pytest.toml": "[pytest]\nvram_report = 'r.json'\n"}, "pytest.toml", 1),
        ({"tox.ini": "[tox]\n[pytest]\naddopts = -q %(x)s\n"}, "tox.ini", 2),
        ({"setup.cfg": "[metadata]\n[tool:pytest]\nvram_report = x\nvram_device = y\n"}, "setup.cfg", 0),
    ],
)
def test_where_pytest_is_configured_it_says_what_to_add(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], files: dict[str, str], where: str, to_add: int
) -> None:
    """No file of theirs changes, as a table in pyproject.toml would take the place of tox.ini and setup.cfg."""
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert cli.main(["init", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert f"left alone: {where} configures pytest" in said
    assert said.count(f"to pytest's options in {where}") == to_add
    assert {name: (tmp_path / name).read_text() for name in files} == files
    assert "pyproject.toml" in files or not (tmp_path / "pyproject.toml").exists()


@pytest.mark.parametrize(
    ("before", "says"),
    [
        ("[project\n", "left alone: pyproject.toml can't be read as TOML"),
        ("tool = {ruff = {}}\n", "left alone: pyproject.toml has its tables in a form that nothing can be added to"),
        ("tool = 1\n", "left alone: pyproject.toml has its tables in a form that nothing can be added to"),
        ("[tool]\npytest = 1\n", "left alone: pyproject.toml configures pytest"),
    ],
)
def test_what_can_not_be_added_to_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], before: str, says: str
) -> None:
    """Broken TOML, and inline tables."""
    (tmp_path / "pyproject.toml").write_text(before)
    assert cli.main(["init", str(tmp_path)]) == 0
    assert says in capsys.readouterr().out
    assert (tmp_path / "pyproject.toml").read_text() == before


def test_a_setup_cfg_of_other_tools_is_no_configuration(tmp_path: Path) -> None:
    """Nor is a tox.ini without pytest's section, nor one that is broken."""
    (tmp_path / "setup.cfg").write_text("[flake8]\nmax-line-length = 99\n")
    (tmp_path / "tox.ini").write_text("no section\n")
    assert cli.main(["init", str(tmp_path)]) == 0
    assert (tmp_path / "pyproject.toml").read_text() == TABLE


@pytest.mark.parametrize(
    ("files", "installs"),
    [
        ({"pyproject.toml": "[project]\nname = 'a'\n"}, "-e ."),
        ({"setup.py": ""}, "-e ."),
        ({"requirements.txt": "", "pyproject.toml": "[tool.ruff]\n"}, "-r requirements.txt"),
        ({}, "pytest"),
    ],
)
def test_the_workflow_has_at_most_20_lines_and_installs_the_project(
    tmp_path: Path, files: dict[str, str], installs: str
) -> None:
    """As the project can be installed; the tests are those that are there, the action is of the wheel's version."""
    (tmp_path / "test").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert cli.main(["init", str(tmp_path)]) == 0
    lines = (tmp_path / ".github" / "workflows" / "memory.yml").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 20
    assert f"      - run: pip install {installs}" in lines
    assert lines[-2:] == [
        f"      - uses: himap-vram/himap-vram@v{__version__}",
        "        with: {arguments: test/test_memory.py}",
    ]


def test_links_and_folders_in_the_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A link that leads nowhere is somebody's too; a folder that does not exist, or can't be written to, is bad input;
    what git should ignore is said."""
    (tmp_path / ".git").mkdir()
    (tmp_path / "budgets.toml").symlink_to("elsewhere")
    assert cli.main(["init", str(tmp_path)]) == 0
    assert not (tmp_path / "elsewhere").exists()
    assert "add .benchmarks/, reports/ and vram-snapshots/ to .gitignore" in capsys.readouterr().out
    (tmp_path / ".gitignore").write_text("/.benchmarks/\n")
    assert cli.main(["init", str(tmp_path)]) == 0
    assert ".gitignore" not in capsys.readouterr().out
    assert cli.main(["init", str(tmp_path / "nowhere")]) == 2
    assert "the project's folder must exist, got" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    other = tmp_path / "other"
    other.mkdir()
    (other / ".github").write_text("")
    assert cli.main(["init", str(other)]) == 2
    assert "can't be written" in capsys.readouterr().err
