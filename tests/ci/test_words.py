"""Docstrings begin with the noun or the verb."""

from __future__ import annotations

import re

from tests.source import PACKAGES, ROOT

FOLDERS = [PACKAGES / name for name in ("himap", "llava", "vram")]
FOLDERS += [ROOT / name for name in ("benchmarks", "ci", "examples", "tests")]
BEGINS = re.compile(r'^\s*"""(?:What|Of|By) .*', re.MULTILINE)


def test_no_docstring_begins_with_what_of_or_by() -> None:
    """They leave the reader without a subject: `Bytes that ...`, `Return ...` say at once what is meant."""
    files = sorted(file for folder in FOLDERS for file in folder.rglob("*.py"))
    assert len(files) > 500
    assert [f"{file}: {line.strip()}" for file in files for line in BEGINS.findall(file.read_text("utf-8"))] == []
