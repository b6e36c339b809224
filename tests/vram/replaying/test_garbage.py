"""Memory that only the garbage collector frees: counted between samples, named, shown everywhere, limited."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import vram
from vram.cli import main
from vram.frames import Frame
from vram.meters import default_meters, torch_device
from vram.meters.tensor import TensorMeter
from vram.replaying.garbage import Garbage
from vram.verdict.summarize import summarize

KiB = 1024


class Session:
    """Refers to itself through its request, as stateful objects of a server do."""

    def __init__(self, n: int, device: torch.device) -> None:
        self.cache = torch.zeros(n * 256, device=device)
        self.request = {"session": self}


def in_cycles(device: str = "cpu") -> Callable[[int], object]:
    return lambda n: Session(n, torch_device(device)).cache.sum()


@pytest.mark.parametrize("device", ["cpu", "simulated"])
def test_cycles_are_a_figure_of_each_sample(device: str) -> None:
    """Sample n leaves n KiB: stable, as the collector frees it in the end, and told to the byte."""
    recording = vram.replay(in_cycles(device), [4, 16, 1], meters=default_meters(device))
    vram.assert_stable(recording)
    assert recording.garbage_bytes is not None
    assert recording.garbage_bytes[1:].tolist() == [[4 * KiB, 16 * KiB, 1 * KiB]] * 4
    assert "Session" in recording.garbage_kinds
    assert (recording.channels["requested"] == recording.before["requested"]).all()
    assert recording.most_garbage_bytes == 16 * KiB
    with pytest.raises(ValueError, match="read-only"):
        recording.garbage_bytes[0, 0] = 1


def test_without_cycles_there_is_none() -> None:
    """Reference counting frees it at once: 0, which is measured."""
    recording = vram.replay(lambda n: torch.zeros(n).sum(), [10, 20])
    assert (recording.most_garbage_bytes, recording.garbage_kinds) == (0, ())
    vram.assert_garbage(recording, 0)


@pytest.fixture
def _collector() -> Iterator[None]:
    thresholds, enabled = gc.get_threshold(), gc.isenabled()
    yield
    gc.set_threshold(*thresholds)
    if enabled:
        gc.enable()


@pytest.mark.usefixtures("_collector")
@pytest.mark.parametrize("how", [gc.disable, lambda: gc.set_threshold(10**6, 10**6, 10**6)])
def test_the_figure_is_the_same_with_the_collector_off_or_slow(how: Callable[[], object]) -> None:
    """Where it matters most; and it is left as it was."""
    how()
    before = gc.get_threshold(), gc.isenabled(), gc.get_debug(), len(gc.garbage)
    recording = vram.replay(in_cycles(), [16])
    assert recording.most_garbage_bytes == 16 * KiB
    assert (gc.get_threshold(), gc.isenabled(), gc.get_debug(), len(gc.garbage)) == before


def test_automatic_collections_within_the_sample_count_and_calls_of_the_step_do_not() -> None:
    """When Python collects by itself is chance, the figure is not: 200 cycles of 1 KiB come to 200 KiB. A step that
    calls the collector is tidy."""

    def many(n: int) -> None:
        for _ in range(n):
            Session(1, torch.device("cpu"))
            _ = [[[]] for _ in range(100)]  # so that Python collects some twenty times

    def tidy(n: int) -> None:
        Session(n, torch.device("cpu"))
        gc.collect()

    recording = vram.replay(many, [200])
    assert recording.garbage_bytes is not None
    assert recording.garbage_bytes.tolist() == [[200 * KiB]] * recording.laps
    assert vram.replay(tidy, [16]).most_garbage_bytes == 0
    assert gc.isenabled()
    assert not [each for each in gc.callbacks if "Garbage" in repr(each)]


def test_warm_up_is_left_out_and_one_lap_is_all_there_is() -> None:
    """A first lap that makes caches may leave cycles; peaks alone have no other lap."""
    first = iter([True])

    def step(n: int) -> None:
        if next(first, False):
            Session(64, torch.device("cpu"))
        Session(n, torch.device("cpu"))

    assert vram.replay(step, [2, 1]).most_garbage_bytes == 2 * KiB
    assert vram.replay(in_cycles(), [8], laps=1).most_garbage_bytes == 8 * KiB


def test_a_limit_holds_to_the_byte_and_names_what_it_is() -> None:
    """Exactly the limit passes; one byte less says how much, by how many bytes, and of what."""
    line = Frame(__file__, Session.__init__.__code__.co_firstlineno + 1, "Session.__init__")
    recording = vram.replay(in_cycles(), [16], name="answer")
    vram.assert_garbage(recording, "16 KiB")
    with pytest.raises(vram.GarbageExceeded) as failure:
        vram.assert_garbage(recording, 16 * KiB - 1)
    assert isinstance(failure.value, AssertionError)
    assert str(failure.value) == (
        "answer: a sample makes up to 16.00 KiB that only the garbage collector frees (Session, float32 [4096]), "
        "1 B over the allowed 16,383 B\n"
        "  garbage of sample 0, run again with tracing: 16.00 KiB\n"
        f"    16.00 KiB {line}: aten.zeros float32 [4096] (other)"
    )


def recursive(n: int) -> None:
    made = torch.zeros(n)

    def inner() -> object:
        return inner, made


def failing(n: int) -> None:
    try:
        kept = torch.zeros(n)
        raise ValueError("handled")
    except ValueError as error:
        kept_error = error  # in the frame that its traceback holds
        assert kept_error is not None
        assert kept is not None


@pytest.mark.parametrize(
    ("step", "kind"),
    [(recursive, "function inner"), (failing, "test_garbage.py:"), (lambda n: made_list(n), "list")],
)
def test_functions_frames_and_lists_are_named(step: Callable[[int], None], kind: str) -> None:
    """A closure of itself, an exception that its own frame keeps, a list in itself."""
    recording = vram.replay(step, [256, 256])
    assert recording.most_garbage_bytes == KiB
    assert any(kind in each for each in recording.garbage_kinds), recording.garbage_kinds
    assert "float32 [256]" in recording.garbage_kinds


def made_list(n: int) -> None:
    made: list[object] = [torch.zeros(n)]
    made.append(made)


def test_naming_changes_nothing_that_is_collected() -> None:
    """Finalizers run once an object, also in the collection that names; objects that come back stay."""
    finalized: list[int] = []
    back: list[object] = []

    class Ending(Session):
        def __del__(self) -> None:
            finalized.append(1)
            if len(finalized) == 3:
                back.append(self)

    def step(n: int) -> None:
        Ending(n, torch.device("cpu"))

    recording = vram.replay(step, [1, 1, 1])
    assert len(finalized) == recording.runs
    assert len(back) == 1
    assert "Ending" in recording.garbage_kinds


def test_other_threads_are_no_garbage() -> None:
    """Nothing was collected, so that what is freed meanwhile was freed by somebody else."""
    gc.collect()
    readings = iter([1000, 0])
    assert Garbage(lambda: next(readings)).collect() == 0


def test_where_nothing_exact_is_measured_it_is_inconclusive() -> None:
    """No figure is no 0."""
    from tests.vram.test_api import flat, recorded

    recording = recorded(requested=flat)
    assert recording.most_garbage_bytes is None
    with pytest.raises(vram.Inconclusive, match="garbage was not measured"):
        vram.assert_garbage(recording, 0)
    assert summarize(recording).garbage_text == ""


def test_nothing_allocated_is_no_pass() -> None:
    """As for peaks: the model may be elsewhere."""
    recording = vram.replay(lambda n: n, [1])
    with pytest.raises(vram.Inconclusive, match="nothing was allocated"):
        vram.assert_garbage(recording, "1 MiB")


PROJECT = """
    import pytest, torch
    class Session:
        def __init__(self, n):
            self.cache, self.me = torch.zeros(n), self
    def answer(n): Session(n)
    @pytest.fixture(scope="session")
    def recording(vram): return vram.replay(answer, [256, 4096], name="served")
    def test_growth(vram, recording): vram.assert_stable(recording)
    def test_within(vram, recording): vram.assert_garbage(recording, "16 KiB")
    def test_tidy(vram): vram.assert_garbage(vram.replay(lambda n: torch.zeros(n), [8], name="tidy"), "0 B")
    def test_over(vram):
        vram.assert_garbage(vram.replay(answer, [4096], name="messy"), "1 KiB")
"""


def test_every_surface_says_it_where_there_is_any(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Terminal, JSON, JUnit, job summary, Markdown and page; the limit that fails is an outcome."""
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(pytester.path / "summary.md"))
    pytester.makepyfile(PROJECT)
    files = ("--vram-report", "r.json", "--junit-xml", "j.xml")
    result = pytester.runpytest("--vram-device", "cpu", *files)
    result.assert_outcomes(passed=3, failed=1)
    words = "a sample makes up to 16.00 KiB that only the garbage collector frees (Session, float32 "
    result.stdout.fnmatch_lines([f"E*GarbageExceeded: messy: {words.replace('[', '[[]')}*"])
    lines = result.outlines[result.outlines.index(next(one for one in result.outlines if "= vram =" in one)) :]
    assert sum(line.startswith(f"served: {words}") for line in lines) == 1
    assert not any(line.startswith("tidy:") for line in lines)
    modes: dict[str, Any] = {mode["mode"]: mode for mode in json.loads(Path("r.json").read_text())["modes"]}
    assert {name: (mode["garbage_bytes"], mode["outcome"]) for name, mode in modes.items()} == {
        "served": (16 * KiB, "stable"),
        "tidy": (0, "stable"),
        "messy": (16 * KiB, "over limit"),
    }
    assert "Session" in modes["served"]["garbage_kinds"]
    junit = Path("j.xml").read_text()
    assert '<property name="vram.served.garbage_bytes" value="16384" />' in junit
    assert "vram.tidy.garbage_bytes" not in junit
    assert f"- served: {words}" in Path("summary.md").read_text()
    main(["report", "--report", "r.json", "--output", "page.html", "--markdown", "page.md"])
    assert "16.00 KiB that only the garbage collector frees" in Path("page.html").read_text()
    assert "16.00 KiB that only the garbage collector frees" in Path("page.md").read_text()


def test_a_sample_without_garbage_costs_one_reading_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only for the meter that decides; for none of the noisy ones, which cost a call to the driver."""
    read, reads = TensorMeter.read, [0]

    def counted(meter: TensorMeter) -> dict[str, int]:
        reads[0] += 1
        return read(meter)

    monkeypatch.setattr(TensorMeter, "read", counted)
    vram.replay(lambda n: torch.zeros(n), [1, 2], laps=3, meters=[TensorMeter()])
    assert reads[0] == 1 + 2 * 6
