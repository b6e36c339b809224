"""README and docs show what a reader gets: every block runs, and every printed output is compared."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from contextlib import suppress
from pathlib import Path
from shutil import copytree
from unittest import SkipTest

import pytest
from sybil.example import SybilFailure

from tests.docs.blocks import ROOT, Project, agree

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BEGUN = Path(__file__).parent / "projects"
SKIP = re.compile(r'<!-- skip: (?:next|start) "(.*)" -->')
# Blocks that do not run here, by what they need. One that takes long names the test that runs it.
NEEDS = {
    "a network": 3,
    "a GPU": 3,
    "another tool": 5,
    "several machines": 1,
    "weights and images": 4,
}


def run(project: Project, page: Path) -> None:
    for example in project.parse(page):
        with suppress(SkipTest):
            example.evaluate()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_of_the_page_runs(page: Path, programs: Path, tmp_path: Path) -> None:
    """In the order of the page, each with the exit code and the output that the page shows."""
    project = Project(tmp_path, programs, BEGUN / page.stem)
    if page.stem == "examples":
        copytree(ROOT / "examples", tmp_path / "examples")
    run(project, page)


def test_every_example_is_run_and_shown() -> None:
    """The page of the examples has each folder, with each of its files."""
    page = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    folders = [path.parent for path in (ROOT / "examples").glob("*/pyproject.toml")]
    assert len(folders) == 3
    for folder in folders:
        assert f"cd examples/{folder.name}" in page
        for file in folder.glob("*.py"):
            assert f'--8<-- "examples/{folder.name}/{file.name}"' in page


def test_what_does_not_run_is_counted_and_says_why() -> None:
    """Each block that is skipped names what it needs, or the test that runs it, which exists."""
    needs: Counter[str] = Counter()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert text.count("<!-- skip: next") + text.count("<!-- skip: start") == len(SKIP.findall(text)), page.name
        for reason in SKIP.findall(text):
            if named := re.search(r"tests/[\w/]+\.py(?:::(\w+))?", reason):
                source = (ROOT / named[0].partition("::")[0]).read_text(encoding="utf-8")
                assert f"def {named[1] or 'test_'}" in source, reason
            else:
                needs[reason.removeprefix("needs ")] += 1
    assert needs == NEEDS


@pytest.mark.parametrize(
    ("page", "says"),
    [
        ("```bash\necho a\n```\n\n```text\nb\n```\n", "it prints something else:\na"),
        ("```bash\nexit 3\n```\n", "exit code 3, and not 0"),
        ("<!-- exit code: 1 -->\n```bash\ntrue\n```\n", "exit code 0, and not 1"),
        ("```bash\nfalse\ntrue\n```\n", "exit code 1, and not 0"),
        ("```text\na\n```\n", "no block before it prints this"),
        ("```console\n$ true\n```\n", "got 'console'"),
        ('```python\n--8<-- "examples/none.py"\n```\n', "there is no file examples/none.py"),
    ],
)
def test_a_page_that_is_wrong_fails(page: str, says: str, tmp_path: Path) -> None:
    """The failure says what is wrong, and where."""
    (tmp_path / "page.md").write_text(page)
    with pytest.raises(SybilFailure, match=re.escape(says)):
        run(Project(tmp_path, tmp_path, tmp_path / "none"), tmp_path / "page.md")


def test_every_extra_that_a_page_names_exists() -> None:
    """`pip install himap-vram[history]`: pip only warns of an extra that is not there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {
        (page.name, extra)
        for page in (*PAGES, ROOT / "action.yml")
        for extras in re.findall(r"(?:himap-vram|GITHUB_ACTION_PATH)\[([\w,]+)\]", page.read_text(encoding="utf-8"))
        for extra in extras.split(",")
    }
    assert {("start.md", "history"), ("action.yml", "history")} <= named
    assert sorted(each for each in named if each[1] not in project["optional-dependencies"]) == []


@pytest.mark.parametrize(
    ("shown", "printed", "agrees"),
    [
        ("a\nb\n", "a  \nb\n", True),
        ("a\n...\nd\n", "a\nb\nc\nd\n", True),
        ("a ... d\n", "a b c d\n", True),
        ("a\n", "a\nb\n", False),
        ("...\nb\n", "a\nb c\n", False),
        ("4.0 KiB (a)\n", "4.0 KiB (a)\n", True),
        ("4.0 KiB\n", "4x0 KiB\n", False),
    ],
)
def test_an_output_agrees_to_the_character(shown: str, printed: str, agrees: bool) -> None:
    """But for `...`, which stands for any text, and for the space at the end of lines."""
    assert agree(shown, printed) is agrees
