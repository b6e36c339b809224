"""Growth and garbage in pieces on every surface: the same words, from one summary that is written and read back."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch import nn

import vram
from vram.history.runs import History
from vram.report.gathered import gathered
from vram.report.github import job_summary
from vram.report.markdown import markdown
from vram.report.page import html
from vram.report.terminal import run_lines
from vram.session import SessionOptions, VramSession
from vram.summary import RunSummary
from vram.summary.reader import run_from_json

from .matrix import visible_text


class Session:
    def __init__(self, data: object) -> None:
        self.data, self.me = data, self


@pytest.fixture(scope="module")
def run() -> RunSummary:
    """A recording that grows, in a module, one whose garbage is over its limit, and one whose garbage is reported."""
    gc.collect()
    gc.freeze()
    session = VramSession(SessionOptions(device="cpu", breakdown="settled"))
    model, log = nn.Sequential(nn.Linear(8, 8)), []

    @torch.inference_mode()
    def grows(n: int) -> None:
        log.append(model(torch.zeros(n, 8)))

    def cycles(n: int) -> None:
        Session(torch.zeros(n))

    with pytest.raises(vram.MemoryGrowth):
        session.assert_stable(session.replay(grows, [4] * 20, name="grows"))
    over = session.replay(cycles, [64], laps=3, name="over")
    with pytest.raises(vram.GarbageExceeded):
        session.assert_garbage(over, 100)
    session.replay(cycles, [64], laps=3, name="reported")
    gc.unfreeze()
    return RunSummary(recordings=session.summaries)


def test_every_surface_has_them(run: RunSummary) -> None:
    """Terminal, job summary, Markdown and page: growth by category and module, garbage by line; JSON has all of it."""
    read = run_from_json(run.to_json())
    assert [one.growth_kept for one in read.recordings] == [one.growth_kept for one in run.recordings]
    assert [one.garbage_kept for one in read.recordings] == [one.garbage_kept for one in run.recordings]
    page = gathered(read, History(()))
    shown = visible_text(html(page))
    reported = "that only the garbage collector frees (Session, float32 [64]): 256 B tests/vram/report/test_kept.py:"
    for text in ("\n".join(run_lines(read)), shown, job_summary(read)):
        assert text.count(reported) >= 2
    by_category, by_module = "by category, a sample: activations 128 B", "by module, a sample: Sequential.* 128 B"
    for text in (markdown(page), shown):
        assert by_category in text
        assert by_module in text
        assert "garbage of sample 0, run again with tracing: 256 B" in text
    assert "growth of 20 runs with tracing, 128 B a sample" in shown
    assert "garbage of sample 0, which only the collector frees" in shown


@pytest.mark.parametrize("where", ["explanation", "garbage"])
def test_pieces_that_do_not_add_up_are_refused(run: RunSummary, where: str) -> None:
    """A report whose pieces are not its figure is no report, and says where."""
    report = copy.deepcopy(run.to_json())
    mode = next(mode for mode in report["modes"] if mode.get(where))
    data = mode[where]["breakdown"] if where == "explanation" else mode[where]
    data["n_bytes"] += 1
    with pytest.raises(ValueError, match=f"{where} of recording {mode['mode']} can't be read: .*do not add up"):
        run_from_json(report)
