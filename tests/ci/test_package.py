"""The package as an index and an installer see it: versions, extras, links, and a reason for each dependency."""

from __future__ import annotations

import importlib.util
import re
import runpy
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import vram
from ci.built import differences, files_of
from llava.eval import custom_selection_inference, eval_scivqa, forecast_memory
from tests.source import PACKAGES
from vram import extras
from vram.cli import main

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OPTIONAL = PROJECT["optional-dependencies"]


def name_of(requirement: str) -> str:
    """The distribution that a requirement names."""
    found = re.match(r"[\w.-]+", requirement)
    assert found is not None
    return found[0]


def test_the_version_has_one_source(capsys: pytest.CaptureFixture[str]) -> None:
    """The module, the command and the installed distribution have the same version."""
    assert vram.__version__ == version("himap-vram")
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"vram {vram.__version__}, of himap-vram\n"


def test_the_session_and_the_meter_are_public() -> None:
    """For annotations of tests, and for meters of one's own."""
    from vram.meters.base import Meter
    from vram.session import VramSession

    assert vram.VramSession is VramSession
    assert vram.Meter is Meter


@pytest.mark.parametrize("program", [eval_scivqa, custom_selection_inference, forecast_memory])
@pytest.mark.parametrize("missing", [["tqdm"], ["PIL", "tqdm", "transformers"]])
def test_a_program_without_its_extra_says_so_in_one_line(
    program: object, missing: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the command that installs it, as bad usage; nothing is imported that fails with a traceback."""
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)
    assert program.main(["--num-samples", "1"] if program is not forecast_memory else []) == 2  # type: ignore[attr-defined]
    said = capsys.readouterr()
    assert said.out == ""
    names = {"tqdm": "tqdm", "PIL": "pillow", "transformers": "transformers"}
    listed = ", ".join(names[name] for name in missing).replace(", transformers", " and transformers")
    verb = "is" if len(missing) == 1 else "are"
    assert said.err.splitlines()[-1].endswith(f"error: {listed} {verb} not installed: pip install 'himap-vram[llava]'")
    assert len(said.err.splitlines()) == 1


def test_himap_without_its_extra_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the last line of what Python prints, for `python -m himap.flops` too."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"^himap needs transformers: pip install 'himap-vram\[llava\]'$"):
        runpy.run_path(str(PACKAGES / "himap" / "__init__.py"))


def test_each_package_is_known_with_its_extra() -> None:
    """Programs name the packages that the extras bring, and each can be imported by the name that is looked for."""
    for extra, packages in extras.PACKAGES.items():
        assert set(packages.values()) <= {name_of(requirement) for requirement in OPTIONAL[extra]}
    for extra in ("lora", "meters", "history"):
        assert set(extras.PACKAGES[extra].values()) == {name_of(requirement) for requirement in OPTIONAL[extra]}
    assert not extras.missing("llava")
    assert importlib.util.find_spec("tqdm") is not None


def test_all_is_everything_that_a_user_may_want() -> None:
    """Each extra but those for work on this project itself."""
    (everything,) = OPTIONAL["all"]
    named = re.fullmatch(r"himap-vram\[(.*)\]", everything)
    assert named is not None
    assert set(named[1].split(",")) == set(OPTIONAL) - {"all", "test", "dev", "docs"}


def test_an_index_can_show_it() -> None:
    """Classifiers that exist, each Python that is meant, links, keywords, and a description without broken links."""
    classifiers = PROJECT["classifiers"]
    assert "Framework :: Pytest" in classifiers
    least = re.fullmatch(r">=3\.(\d+)", PROJECT["requires-python"])
    assert least is not None
    pythons = [each.rpartition(" ")[2] for each in classifiers if re.search(r"Python :: 3\.\d+$", each)]
    assert pythons == [f"3.{minor}" for minor in range(int(least[1]), 15)]
    assert {"Documentation", "Source", "Issues", "Changelog"} <= set(PROJECT["urls"])
    assert all(url.startswith("https://github.com/") for url in PROJECT["urls"].values())
    assert "pytest" in PROJECT["keywords"]


def test_every_dependency_has_its_reason() -> None:
    """docs/dependencies.md has a row for each in pyproject.toml, of the same group, and for no other."""
    text = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w.-]+)` \| ([\w ]+) \| ([^|]+) \|$", text, re.M)
    assert all(len(reason) > 12 for _, _, reason in rows)
    groups = {"always": PROJECT["dependencies"], **OPTIONAL}
    expected = {
        (name_of(requirement), group)
        for group, requirements in groups.items()
        for requirement in requirements
        if name_of(requirement) != PROJECT["name"]
    }
    assert sorted((name, group) for name, group, _ in rows) == sorted(expected)


def test_an_index_shows_the_readme_with_links_that_work() -> None:
    """An index has the README alone, where relative links lead nowhere: the build makes each absolute, to a file."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    described = runpy.run_path(str(ROOT / "setup.py"))["description"]()
    links = r"(?:\]\(|\b(?:href|src|srcset)=\")([^)\"\s]+)"
    local = [link.partition("#")[0] for link in re.findall(links, readme) if not link.startswith(("https:", "#"))]
    assert local
    assert all((ROOT / link).exists() for link in local)
    found = re.findall(links, described)
    assert found
    assert all(link.startswith(("https://", "#")) for link in found)
    assert re.sub(r"https://github\.com/himap-vram/himap-vram/(blob|raw)/main/", "", described) == readme
    assert PROJECT["dynamic"] == ["readme"]


def test_a_wheel_that_is_not_the_packages_is_refused(tmp_path: Path) -> None:
    """A file that is missing (one of data, for instance) or left over; what Python compiled is none."""
    for name in (
        "himap/py.typed",
        "vram/report/page.css",
        "llava/__init__.py",
        "llava/__pycache__/a.pyc",
        "tests/a.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = files_of(tmp_path)
    assert found == {"himap/py.typed", "vram/report/page.css", "llava/__init__.py"}
    assert differences(found, found) == []
    built = found - {"vram/report/page.css"} | {"vram/old.py"}
    assert differences(found, built) == ["vram/report/page.css is missing", "vram/old.py is too much"]


def test_tests_of_the_wheel_refuse_the_checkout(tmp_path: Path) -> None:
    """Where the wheel is meant, a package that comes from elsewhere is a usage error that names both."""
    check = runpy.run_path(str(ROOT / "conftest.py"))["_check_source"]
    check(None)
    check(str(PACKAGES))
    with pytest.raises(pytest.UsageError, match=rf"VRAM_TESTED: himap must come from {tmp_path}, got it from .*himap"):
        check(str(tmp_path))


def test_the_oldest_and_newest_that_nox_runs_are_those_that_are_supported() -> None:
    """The sessions have the versions of Python, transformers and pytest that pyproject.toml allows."""
    pytest.importorskip("nox", reason="nox comes with the extra dev")
    sessions = runpy.run_path(str(ROOT / "noxfile.py"))
    supported = {name_of(each): each for each in (*OPTIONAL["llava"], *OPTIONAL["test"])}
    assert supported["transformers"] == f"transformers{sessions['NEWEST']}"
    assert sessions["OLDEST"].partition(",")[0] == sessions["NEWEST"].partition(",")[0]
    assert supported["pytest"] == "pytest>=8.3"
    assert sessions["PYTHONS"][0] == PROJECT["requires-python"].removeprefix(">=")
