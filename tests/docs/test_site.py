"""The documentation as a site: it builds without a warning, fetches nothing, and has every public name and option."""

from __future__ import annotations

import logging
import re
import tomllib
from argparse import SUPPRESS
from html.parser import HTMLParser

import pytest

import himap
import vram
from tests.docs.blocks import ROOT

build = pytest.importorskip("mkdocs.commands.build", reason="the extra docs is not installed")
FETCHES = {("script", "src"), ("link", "href"), ("img", "src"), ("iframe", "src"), ("source", "src")}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


class Elements(HTMLParser):
    """Lists what a page fetches, the ids of its elements, and where its links lead."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.ids: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = {name: value or "" for name, value in attrs}
        self.fetched += [named[name] for of, name in FETCHES if tag == of and name in named]
        self.ids |= {named["id"]} if "id" in named else set()
        self.links += [named["href"]] if tag == "a" and "href" in named else []


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Elements]:
    """Each page of the site by its path. Strict: a broken link or a page that the menu lacks stops the build."""
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    logging.getLogger("mkdocs").setLevel(logging.ERROR)
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder))
    config.plugins.on_startup(command="build", dirty=False)
    build.build(config)
    pages = {}
    for path in folder.rglob("*.html"):
        pages[str(path.relative_to(folder))] = elements = Elements()
        elements.feed(path.read_text(encoding="utf-8"))
    return pages


def test_each_page_is_there_and_fetches_nothing_from_elsewhere(site: dict[str, Elements]) -> None:
    """Fonts, scripts and images are the site's own."""
    assert len(site) > len(list((ROOT / "docs").glob("*.md")))
    for path, elements in site.items():
        assert elements.fetched, path
        assert not [each for each in elements.fetched if re.match(r"(https?:)?//", each)], path


def test_a_link_out_of_the_docs_leads_to_the_repository(site: dict[str, Elements]) -> None:
    """As pyproject.toml names it: the case of the zoo, in the repository of mkdocs.yml."""
    links = site["zoo/index.html"].links
    assert f"{PROJECT['urls']['Source']}/blob/main/tests/vram/zoo/leaks/hook_closure.py" in links


def test_every_public_name_is_in_the_api(site: dict[str, Elements]) -> None:
    """All names of `vram` and `himap`, by the module that has them, with what their docstrings say; former names in a
    sentence."""
    ids = {each.rpartition(".")[2] for each in site["api/index.html"].ids}
    former = {"Level", "LevelExceeded", "judge_level"}
    names = {name for name in {*vram.__all__, *himap.__all__} if not name.startswith("__")}
    assert sorted(names - former - ids) == []


def test_every_option_is_in_the_guide(pytestconfig: pytest.Config) -> None:
    """docs/own-project.md names all options of the plugin that have a help text, and no other."""
    page = (ROOT / "docs" / "own-project.md").read_text(encoding="utf-8")
    options = [option.attrs() for group in pytestconfig._parser._groups for option in group.options]
    known = {option["dest"] for option in options if option["dest"].startswith("vram_") and option["help"] != SUPPRESS}
    assert {name.replace("-", "_") for name in re.findall(r"--(vram-[a-z-]+)", page)} == known
