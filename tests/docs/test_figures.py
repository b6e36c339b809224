"""Pages show what was recorded of runs that take minutes."""

from __future__ import annotations

import json
import re
import tomllib

from tests.docs.blocks import ROOT
from tests.vram.zoo.cases import KINDS, cases
from vram.history.entries import to_json
from vram.history.store import unpacked
from vram.units import format_bytes

ROW = re.compile(r"^(7b )?([\w-]+)(?:, (sdpa|eager))? +\d+ x \d+ +(?:0 B|-) {2,}(\S+ \S+) {2,}(\S+ \S+) ", re.MULTILINE)


def budgets(name: str) -> list[dict[str, object]]:
    return tomllib.loads((ROOT / "ci" / "budgets" / name).read_text(encoding="utf-8"))["budget"]


def test_the_suites_table_has_the_recorded_budgets() -> None:
    """In docs/memory-suite.md: each row's limit is a budget of its mode, and no peak is above it."""
    page = (ROOT / "docs" / "memory-suite.md").read_text(encoding="utf-8")
    rows = ROW.findall(page)
    assert len(rows) == 8
    for preset, mode, attention, peak, limit in rows:
        recorded = [
            budget["peak_bytes"]
            for budget in budgets("7b.toml" if preset else "tiny.toml")
            if (budget["mode"], budget["attention"]) == (mode, attention or "sdpa") and budget.get("figure") != "tokens"
        ]
        assert recorded
        assert limit in {text for each in recorded for text in (format_bytes(each), f"{each:,} B")}, mode
        assert peak == limit or peak in {f"{each:,} B" for each in range(max(recorded) - 256, max(recorded))}, mode


def test_the_readme_is_short_and_counts_the_zoo() -> None:
    """At most 90 lines, and as many planted faults and decoys as there are cases."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 90
    assert f"[{sum(len(cases(kind)) for kind in KINDS)} planted faults and decoys]" in readme


def test_the_json_of_the_history_page_is_a_saved_run_s() -> None:
    """An entry of schema 1, as `vram compare` reads it."""
    page = (ROOT / "docs" / "history.md").read_text(encoding="utf-8")
    block = re.search(r"^```json\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert block is not None
    [shown] = json.loads(block[1])["entries"]
    [entry] = unpacked(json.loads(block[1]))
    written = to_json(entry)
    assert shown.keys() == written.keys()
    assert shown["channels"]["requested_peak"].keys() == written["channels"]["requested_peak"].keys()
