"""The zoo as a page: docs/zoo.md is what `page` returns."""

from __future__ import annotations

from tests.vram.zoo.cases import KINDS, Case, cases

_HEAD = """# The zoo: planted faults and decoys

Each case is one test file of a small project in `tests/vram/zoo/`, run by a real pytest with the plugin on the CPU.
Comments at the head of the file state the result that the plugin must give. For a leak that is the verdict, the line
that allocates, and the objects that keep the memory, in exactly these words (`…` stands for any text).

*Leaks* must be found. *Raised peaks* must fail their limit. *Decoys* look like leaks and must pass.

<!-- skip: next "takes minutes; tests/vram/zoo/test_zoo.py runs each case" -->
```bash
python -m tests.vram.zoo --repeat 20   # the whole zoo 20 times; a table of right answers, exit code 1 on any wrong one
python -m tests.vram.zoo --table       # this page
```
"""
_TITLES = {"leaks": "Leaks", "peaks": "Raised peaks", "decoys": "Decoys"}


def page() -> str:
    """Markdown: a table for each kind of case."""
    parts = [_HEAD]
    for kind in KINDS:
        found = cases(kind)
        parts.append(f"\n## {_TITLES[kind]} ({len(found)})\n\n| case | what is planted | expected |\n|---|---|---|\n")
        parts += [
            f"| [{case.name}](../tests/vram/zoo/{kind}/{case.name}.py) | {case.promise} | {_expected(case)} |\n"
            for case in found
        ]
    return "".join(parts)


def _expected(case: Case) -> str:
    words = [case.expect]
    if case.holder is not None:
        words.append(f"held by: {_readable(case.holder)}")
    if case.host is not None:
        words.append(f"the host's memory {case.host}")
    if case.suggests:
        words.append(f"way out: {case.suggests}")
    if case.device != "cpu":
        words.append(f"measured on {case.device}")
    if case.fault is not None:
        words.append(f"**not yet**: {case.fault}")
    return "; ".join(words)


def _readable(pattern: str) -> str:
    return pattern.replace("*", "…")
