"""A regression that `vram gate` finds says which line, in which module, of which kind: the same on every surface."""

from __future__ import annotations

import json
from pathlib import Path

from tests.vram.gating.conftest import Stranger

MODEL = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide = nn.Linear(32, 64)
        self.narrow = nn.Linear(64, 32)

    def forward(self, x):
        hidden = torch.relu(self.wide(x)){extra}
        return self.narrow(hidden)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x
"""
TEST = """
import torch
from model import Net

def test_memory(vram):
    net = Net()
    def step(batch):
        with torch.inference_mode():
            return net(batch)
    vram.replay(step, [torch.ones(64, 32), torch.ones(128, 32)], name="forward", laps=3)
"""
PLANTED = "model.py:13 Block.forward: aten.mul float32 [128, 64] in blocks.* (activations)"


def suite(stranger: Stranger, extra: str = "") -> None:
    """A small network, with or without one more activation in each block."""
    stranger.write("pytest.ini", "[pytest]\npythonpath = .\n")
    stranger.write("model.py", MODEL.format(extra=extra))
    stranger.write("tests/test_memory.py", TEST)


def test_line_module_category_and_bytes(stranger: Stranger) -> None:
    """The failure, the comparison, the comment, the page and JSON name the planted line, its module and category; what
    is saved is at most 3 KB; taking it out again is an improvement, which is explained alike."""
    suite(stranger)
    assert stranger.gate("--vram-accept")[0] == 0
    suite(stranger, "\n        doubled = hidden * 2\n        hidden = hidden + doubled")
    code, _, printed = stranger.gate()
    assert code == 1
    title = "forward, beside run 0001: +32.00 KiB at the peak (sample 1): activations +32.00 KiB"
    assert printed.count(title) >= 2  # of pytest, and of the comparison
    assert printed.count(f"+32.00 KiB came: {PLANTED}") >= 2
    reports = stranger.root / "reports"
    comment = (reports / "memory.md").read_text(encoding="utf-8")
    assert title in comment
    assert f"+32.00 KiB came: {PLANTED}" in comment
    page = (reports / "memory.html").read_text(encoding="utf-8")
    assert f"came: {PLANTED}" in page
    assert page.count('class="icicle"') == 2  # base and head, side by side
    (mode,) = json.loads((reports / "memory.json").read_text(encoding="utf-8"))["modes"]
    assert title in mode["base_lines"]
    assert mode["at_peak"]["breakdown"]["peak_bytes"] == mode["peak_bytes"]
    for saved in stranger.root.glob(".benchmarks/*/*.json"):
        for benchmark in json.loads(saved.read_text(encoding="utf-8"))["benchmarks"]:
            for entry in benchmark["extra_info"]["vram"]["entries"]:
                assert 0 < len(json.dumps(entry["breakdown"], separators=(",", ":"))) <= 3000

    assert stranger.gate("--vram-accept")[0] == 0
    suite(stranger)
    code, _, printed = stranger.gate()
    assert code == 0
    assert "forward, beside run 0003: -32.00 KiB at the peak (sample 1): activations -32.00 KiB" in printed
    assert "-32.00 KiB at the peak (sample 1)" in (reports / "memory.md").read_text(encoding="utf-8")


def test_switched_off_nothing_is_run_again(stranger: Stranger) -> None:
    """`vram_breakdown = false`: no rerun, so no breakdown in the report; the regression is found all the same, and with
    a base that was broken down the comparison says that this run was not."""
    suite(stranger)
    assert stranger.gate("--vram-accept")[0] == 0
    suite(stranger, "\n        doubled = hidden * 2\n        hidden = hidden + doubled")
    code, _, printed = stranger.gate("-o", "vram_breakdown=false")
    assert code == 1
    assert "forward, beside run 0001: the peak was not broken down in this run" in printed
    (mode,) = json.loads(Path("reports/memory.json").read_text(encoding="utf-8"))["modes"]
    assert "at_peak" not in mode
