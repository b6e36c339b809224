"""What pages show of runs that take minutes is what was recorded of such runs."""

from __future__ import annotations

import re
import tomllib

from tests.docs.blocks import ROOT
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
