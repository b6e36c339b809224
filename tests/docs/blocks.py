"""Every block of code and every printed output of a page, run in the order of the page.

A page has a project: a folder in which its blocks run as a reader would run them. It begins with what is in
`projects/` under the page's name, else empty.

    ```python title="test_model.py"     a file of the project; so is a toml, ini or yaml block with a title
    ```python                           runs, after the blocks of this kind that stand before it on the page
    ```bash                             runs in the project; a line that fails ends it and fails the page
    ```text                             what the last block that ran prints; `...` stands for any text, over lines too
    ```toml, ini, json, yaml            is read by a parser

Comments, which a reader does not see:

    <!-- skip: next "needs a GPU" -->       the next block does not run (Sybil's own; `start` and `end` for several)
    <!-- exit code: 1 -->                   the next block ends with this exit code
    <!-- set-up: python ... -->             code as in a block of that language
    --8<-- "examples/unet/unet.py"          a block that is a file of the examples, which have tests of their own
"""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml
from sybil import Document, Example, Region, Sybil
from sybil.parsers.abstract.lexers import BlockLexer
from sybil.parsers.markdown import SkipParser
from sybil.parsers.markdown.lexers import DirectiveInHTMLCommentLexer, RawFencedCodeBlockLexer

ROOT = Path(__file__).parents[2]

_FENCED = RawFencedCodeBlockLexer(re.compile(r'(?P<language>\w*)(?: title="(?P<title>[^"]*)")?$\n', re.MULTILINE))
_SET_UP = BlockLexer(re.compile(r"^<!-- set-up: (?P<language>\w+)\n", re.MULTILINE), r"(?m)^-->")
_EXIT_CODE = DirectiveInHTMLCommentLexer("exit code", r"\d+")
_INCLUDED = re.compile(r'--8<-- "([^"]+)"\n')
# Plugins that this project's own tests bring, and a reader has not.
_STRANGER = " ".join(f"-p no:{name}" for name in ("anyio", "asyncio", "hypothesispytest", "rerunfailures", "xdist"))
_PARSERS: dict[str, Callable[[str], object]] = {
    "ini": lambda text: configparser.ConfigParser().read_string(text),
    "json": json.loads,
    "toml": tomllib.loads,
    "yaml": yaml.safe_load,
}

# Runs the first argument in silence, then the second in the same namespace.
_AFTER = """
import contextlib, io, sys
namespace = {"__name__": "__main__"}
with contextlib.redirect_stdout(io.StringIO()):
    exec(compile(sys.argv[1], "page.py", "exec"), namespace)
exec(compile(sys.argv[2], "page.py", "exec"), namespace)
"""


class Project:
    """The project of one page, and what its last block printed."""

    def __init__(self, folder: Path, commands: Path, begun: Path) -> None:
        self.folder = folder
        path = f"{commands}:{os.environ['PATH']}"
        self._environment = os.environ | {"PATH": path, "COLUMNS": "120", "PYTEST_ADDOPTS": _STRANGER}
        self.printed: str | None = None
        self._code = ""
        self._exit_code = 0
        if begun.is_dir():
            shutil.copytree(begun, folder, dirs_exist_ok=True)

    def parse(self, page: Path) -> Document:
        """The page, whose examples run in this project."""
        return Sybil([SkipParser(), self._exit_codes, self._blocks]).parse(page)

    def _exit_codes(self, document: Document) -> Iterator[Region]:
        for region in _EXIT_CODE(document):
            yield Region(region.start, region.end, int(region.lexemes["arguments"]), self._expect)

    def _expect(self, example: Example) -> None:
        self._exit_code = example.parsed

    def _blocks(self, document: Document) -> Iterator[Region]:
        for region in (*_FENCED(document), *_SET_UP(document)):
            lexemes = region.lexemes
            parsed = lexemes["language"], lexemes.get("title"), str(lexemes["source"])
            yield Region(region.start, region.end, parsed, self._block)

    def _block(self, example: Example) -> str | None:
        """None where the block is right, else what is wrong with it."""
        language, title, source = example.parsed
        expected, self._exit_code = self._exit_code, 0
        if included := _INCLUDED.fullmatch(source):
            return None if (ROOT / included[1]).is_file() else f"there is no file {included[1]}"
        if language in _PARSERS:
            _PARSERS[language](source)
        if title:
            file = self.folder / title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(source)
            return None
        if language == "python":
            before, self._code, code = self._code, self._code + source, source
            return self.run(shlex.join(["python", "-c", _AFTER, before, code]), expected)
        if language == "bash":
            return self.run(source, expected)
        if language == "text":
            return self._compare(source)
        return None if language in _PARSERS else f"a block must have one of the languages above, got {language!r}"

    def run(self, script: str, expected: int = 0) -> str | None:
        """None where the script ends with that exit code; `printed` has what it prints."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],  # noqa: S607
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        self.printed = done.stdout
        if done.returncode != expected:
            return f"exit code {done.returncode}, and not {expected}:\n{done.stdout}"
        return None

    def _compare(self, shown: str) -> str | None:
        if self.printed is None:
            return "no block before it prints this"
        return None if agree(shown, self.printed) else f"it prints something else:\n{self.printed}"


def agree(shown: str, printed: str) -> bool:
    """True where `printed` is what a page shows: `...` stands for any text; space at the end of lines is free."""
    pattern = ".*".join(re.escape(part) for part in _without_ends(shown).split("..."))
    return re.fullmatch(pattern, _without_ends(printed), re.DOTALL) is not None


def _without_ends(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())
