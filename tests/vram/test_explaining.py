"""A failing growth test says which line and which holder: planted leaks in real runs of the plugin."""

from __future__ import annotations

import functools
import gc
import json
import os
import re
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import vram
from vram.explaining import Explanation, Line, by_line, shapes
from vram.tracing import Allocation, Frame

_HEAD = """
import collections, contextvars, functools, logging, logging.handlers, threading, weakref
import torch
KEPT, CALLS = [], []
def made(n=256):
    return torch.zeros(n)
def test_leak(vram):
    vram.assert_stable(vram.replay(step, range(20), name=__name__))
"""
# name -> (source with "# here" on the line that allocates, what the holder's words must match)
_LEAKS = {
    "list": (
        """
def step(_):
    KEPT.append(torch.zeros(256))  # here
""",
        r"list `KEPT` \(\d+ items\), global of module test_list",
    ),
    "list_in_a_dictionary_of_an_object": (
        """
class Trainer:
    def __init__(self):
        self.history = {"losses": []}
    def step(self, _):
        self.history["losses"].append(torch.ones(256))  # here
TRAINER = Trainer()
step = TRAINER.step
""",
        r"list .* at key `losses` of dict `history` .*, attribute of Trainer `TRAINER`, global of module",
    ),
    "replaced_by_a_larger_one": (
        """
class Model:
    cache = torch.zeros(0)
    def step(self, _):
        self.cache = torch.cat([self.cache, torch.zeros(64)])  # here
step = Model().step
""",
        "attribute `cache` of Model, self of the step Model.step",
    ),
    "unbounded_lru_cache_on_a_method": (
        """
class Model:
    @functools.lru_cache(maxsize=None)
    def encode(self, n):
        return torch.zeros(256)  # here
MODEL = Model()
def step(_):
    CALLS.append(1)
    MODEL.encode(len(CALLS))
""",
        r"result of lru_cache of Model.encode, class attribute of class .*Model",
    ),
    "large_lru_cache": (
        """
@functools.lru_cache(maxsize=4096)
def encode(n):
    return torch.zeros(256)  # here
def step(_):
    CALLS.append(1)
    encode(len(CALLS))
""",
        "result of lru_cache of encode, global of module",
    ),
    "closure_of_a_hook": (
        """
def hooked():
    seen = []
    def remember(module, inputs, output):
        seen.append(output.detach())
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    model[0].register_forward_hook(remember)
    return model
MODEL = hooked()
def step(_):
    MODEL(torch.ones(64, 4))  # here
""",
        r"list `seen` .*, closure variable of function remember, forward hook of Linear `0`, submodule of Sequential",
    ),
    "hook_registered_per_call": (
        """
MODEL = torch.nn.Linear(4, 4)
def step(_):
    scale = torch.ones(256)  # here
    MODEL.register_forward_hook(lambda module, inputs, output: output * scale[0])
""",
        "closure variable `scale` of function <lambda>, forward hook of Linear `MODEL`",
    ),
    "default_argument": (
        """
def step(_, kept=[]):
    kept.append(torch.zeros(256))  # here
""",
        r"list `kept` \(\d+ items\), default argument of the step step",
    ),
    "exception_traceback": (
        """
def work():
    held = torch.zeros(256)  # here
    raise ValueError
def step(_):
    try:
        work()
    except ValueError as error:
        KEPT.append(error)
""",
        r"local `held` of work \(test_exception_traceback.py:\d+\), in the traceback of exception ValueError in list",
    ),
    "suspended_generator": (
        """
def stream():
    state = torch.zeros(256)  # here
    yield 1
    del state
def step(_):
    generator = stream()
    next(generator)
    KEPT.append(generator)
""",
        "local `state` of suspended generator stream in list `KEPT`",
    ),
    "thread_local": (
        """
LOCAL = threading.local()
def step(_):
    LOCAL.kept = getattr(LOCAL, "kept", []) + [torch.zeros(256)]  # here
""",
        "list `kept` .*, attribute of thread-local `LOCAL`",
    ),
    "context_copy": (
        """
VAR = contextvars.ContextVar("VAR")
def step(_):
    context = contextvars.copy_context()
    context.run(VAR.set, torch.zeros(256))  # here
    KEPT.append(context)
""",
        "context variable of Context in list `KEPT`",
    ),
    "class_registry": (
        """
class Request:
    alive = []
    def __init__(self):
        self.alive.append(self)
        self.ids = torch.zeros(256)  # here
def step(_):
    Request()
""",
        "attribute `ids` of Request in list `alive` .*, class attribute of class .*Request",
    ),
    "buffer_per_call": (
        """
class Module(torch.nn.Module):
    def forward(self, _):
        self.register_buffer(f"mask{len(self._buffers)}", torch.zeros(256))  # here
MODULE = Module()
def step(n):
    MODULE(n)
""",
        r"buffer `mask\d+` of Module `MODULE`",
    ),
    "graph_of_a_kept_loss": (
        """
WEIGHT = torch.nn.Parameter(torch.ones(256))
def step(_):
    inputs = torch.rand(256)  # here
    KEPT.append((inputs * WEIGHT).sum())
""",
        r"autograd graph \(MulBackward0\) of a tensor held by list `KEPT`",
    ),
    "view_of_a_large_base": (
        """
def step(_):
    KEPT.append(torch.zeros(4096)[:4])  # here
""",
        r"list `KEPT` .*\(a view of 16 B keeps the whole storage\)",
    ),
    "numpy_array": (
        """
def step(_):
    KEPT.append(torch.full((256,), 2.0).numpy())  # here
""",
        "NumPy array held by list `KEPT`",
    ),
    "weak_dictionary_whose_value_holds_its_key": (
        """
class Key: pass
SEEN = weakref.WeakKeyDictionary()
def step(_):
    key = Key()
    SEEN[key] = [key, torch.zeros(256)]  # here
""",
        r"list \(2 items\) at key .* of dict `data` .*, attribute of WeakKeyDictionary `SEEN`",
    ),
    "resurrected": (
        """
class Phoenix:
    def __init__(self):
        self.data = torch.zeros(256)  # here
    def __del__(self):
        KEPT.append(self)
def step(_):
    Phoenix()
""",
        "attribute `data` of Phoenix in list `KEPT`",
    ),
    "log_records": (
        """
HANDLER = logging.handlers.MemoryHandler(10**6)
def step(_):
    logits = torch.zeros(256)  # here
    HANDLER.emit(logging.LogRecord("name", 10, "path", 1, "%s", (logits,), None))
""",
        "tuple `args` .*, attribute of LogRecord in list `buffer` .*, attribute of MemoryHandler `HANDLER`",
    ),
    "slots_linked_list": (
        """
class Node:
    __slots__ = ("data", "next")
HEAD = Node()
HEAD.next = None
def step(_):
    node = Node()
    node.data = torch.zeros(256)  # here
    node.next, HEAD.next = HEAD.next, node
""",
        r"attribute `data` of Node `next` \(\d+ links on\), attribute of Node `HEAD`, global",
    ),
    "resized_in_place": (
        """
OUT = torch.zeros(0)
def step(_):
    OUT.resize_(OUT.numel() + 64)  # here
""",
        "global `OUT` of module",
    ),
    "every_seventh_sample": (
        """
def step(n):
    kept = torch.zeros(256)  # here
    if n % 7 == 0:
        KEPT.append(kept)
""",
        "list `KEPT`",
    ),
    "peak_only": (
        """
def step(_):
    CALLS.append(1)
    torch.zeros(64 * len(CALLS))  # here
""",
        "",
    ),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """One run of the plugin on every planted leak: its folder, the report by leak, and what it printed."""
    folder = tmp_path_factory.mktemp("leaks")
    for name, (source, _) in _LEAKS.items():
        (folder / f"test_{name}.py").write_text(_HEAD + source)
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    command = [sys.executable, "-m", "pytest", "--vram-device", "cpu", "--vram-report", "memory.json"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**os.environ}, check=False)
    assert result.returncode == 1, result.stdout + result.stderr
    modes = json.loads((folder / "memory.json").read_text())["modes"]
    return folder, {mode["mode"].removeprefix("test_"): mode for mode in modes}, result.stdout


@pytest.mark.parametrize("name", _LEAKS)
def test_a_planted_leak_names_its_line_and_its_holder(runs: tuple[Path, dict[str, Any], str], name: str) -> None:
    """The first allocation line is the planted one, the bytes are the verdict's, the holder is in a user's words."""
    folder, reports, _ = runs
    explained = reports[name]["explanation"]
    source = (folder / f"test_{name}.py").read_text().splitlines()
    planted = next(number for number, line in enumerate(source, start=1) if line.endswith("# here"))
    line = explained["lines"][0]
    assert line["where"].startswith(f"test_{name}.py:{planted} "), line
    assert line["op"].startswith("aten."), line
    assert line["dtype"] == "float32"
    assert re.search(_LEAKS[name][1], line["holder"]), line["holder"]
    assert (folder / explained["snapshot"]).stat().st_size > 0
    total = sum(line["bytes_per_sample"] for line in explained["lines"])
    assert total == pytest.approx(reports[name]["bytes_per_sample"], rel=0.1)


def test_every_failure_fits_on_a_terminal_and_names_its_snapshot(runs: tuple[Path, dict[str, Any], str]) -> None:
    """At most 25 lines each, the last of which is where the rest is to be found."""
    printed = runs[2].split("MemoryGrowth: ")[1 : len(_LEAKS) + 1]
    for failure in printed:
        lines = [line for line in failure.splitlines() if re.match("E +[^ v]", line)]
        assert len(lines) + 1 <= 25
        assert "snapshot for pytorch.org/memory_viz: vram-snapshots" in lines[-1]


def test_samples_and_marks_that_it_comes_from_are_named() -> None:
    """Only sample 1 leaks, and only from its third token on: both are said."""
    kept: list[torch.Tensor] = []

    def step(tokens: int) -> None:
        for token in range(tokens):
            vram.mark("token")
            if token >= 2:
                kept.append(torch.zeros(256))

    recording = vram.replay(step, [2, 4] * 5)
    with pytest.raises(vram.MemoryGrowth, match=r"only from samples 1, 3, 5, 7, 9; first after token 2"):
        vram.assert_stable(recording)


def test_growth_that_tracing_does_not_reproduce_is_said_in_a_line() -> None:
    """A step that leaks in the replay only: the verdict stands, and one line says that no line can be named."""
    kept: list[torch.Tensor] = []
    calls: list[int] = []

    def step(_: int) -> None:
        calls.append(1)
        if len(calls) <= 200:
            kept.append(torch.zeros(256))

    recording = vram.replay(step, range(20), name="leaky")
    with pytest.raises(vram.MemoryGrowth, match="with tracing did not make it grow") as failure:
        vram.assert_stable(recording)
    assert "grows by 1,024 B a sample" in str(failure.value)
    assert sum("tracing" in line for line in str(failure.value).splitlines()) == 1


@pytest.mark.parametrize("error", [ValueError("worn\nout"), pytest.fail.Exception("not today")])
def test_a_rerun_that_raises_leaves_the_verdict_standing(error: BaseException) -> None:
    """Whatever the rerun raises, pytest's own outcomes included, the test fails for its growth, and says the rest."""
    kept: list[torch.Tensor] = []

    def step(_: int) -> None:
        kept.append(torch.zeros(256))
        if len(kept) > 200:
            raise error

    recording = vram.replay(step, range(20))
    with pytest.raises(vram.MemoryGrowth, match=f"sample 0 again with tracing raised {type(error).__name__}: "):
        vram.assert_stable(recording)


def test_an_explanation_keeps_nothing_alive_and_leaves_the_collector_as_it_was() -> None:
    """Tensors, step and samples are gone with the leak itself; thresholds and freezing are untouched."""

    class Sample:
        pass

    kept: list[torch.Tensor] = []
    step = functools.partial(lambda held, _: held.append(torch.zeros(256)), kept)
    samples = [Sample() for _ in range(20)]
    recording = vram.replay(step, samples)
    before = gc.get_threshold(), gc.get_freeze_count(), gc.isenabled()
    with pytest.raises(vram.MemoryGrowth, match="held by: list"):
        vram.assert_stable(recording)
    assert (gc.get_threshold(), gc.get_freeze_count(), gc.isenabled()) == before
    alive = [weakref.ref(thing) for thing in (*kept, *samples, step)]
    assert len(alive) > 200
    del kept, samples, step
    gc.collect()
    assert recording.laps == 10
    assert [ref() for ref in alive if ref() is not None] == []


def test_what_someone_froze_stays_frozen_and_is_found_nevertheless() -> None:
    """A holder out of the collector's sight is named, and out of sight again afterwards."""
    kept: list[torch.Tensor] = []
    gc.freeze()
    try:
        recording = vram.replay(lambda _: kept.append(torch.zeros(256)), range(20))
        with pytest.raises(vram.MemoryGrowth, match=r"list `kept` \(\d+ items\), closure variable of the step"):
            vram.assert_stable(recording)
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


def test_asked_again_it_answers_the_same_and_runs_nothing() -> None:
    """Two tests on one recording of a session: the same explanation, one rerun."""
    kept: list[torch.Tensor] = []
    recording = vram.replay(lambda _: kept.append(torch.zeros(256)), range(20))
    texts = []
    for _ in range(2):
        with pytest.raises(vram.MemoryGrowth) as failure:
            vram.assert_stable(recording)
        texts.append(str(failure.value))
        length = len(kept)
    assert texts[0] == texts[1]
    assert len(kept) == length == 240


def test_a_stable_step_is_not_run_again() -> None:
    """No growth, no rerun: the samples run exactly laps x samples times."""
    runs: list[int] = []
    vram.assert_stable(vram.replay(runs.append, range(20)))
    assert len(runs) == 100


def test_a_ring_buffer_beside_a_leak_is_not_accused() -> None:
    """What is replaced all the time is alive at the end too, and no growth."""
    kept: list[torch.Tensor] = []
    ring: list[torch.Tensor] = []

    def step(_: int) -> None:
        kept.append(torch.zeros(8))
        ring.append(torch.ones(4096))
        del ring[:-5]

    recording = vram.replay(step, range(20))
    with pytest.raises(vram.MemoryGrowth) as failure:
        vram.assert_stable(recording)
    assert "aten.zeros float32 [8]; 40 alive" in str(failure.value)
    assert "aten.ones" not in str(failure.value)


def test_a_snapshot_that_cannot_be_written_is_told_and_changes_nothing(tmp_path: Path) -> None:
    """A full disk is no reason to hide a leak."""
    kept: list[torch.Tensor] = []
    recording = vram.replay(lambda _: kept.append(torch.zeros(256)), range(20))

    def save(_: dict[str, Any]) -> Path:
        raise OSError("no space left")

    with pytest.raises(vram.MemoryGrowth, match="no snapshot: no space left"):
        vram.assert_stable(recording, save=save)


def allocation(line: int, shape: tuple[int, ...], n_bytes: int = 4) -> Allocation:
    return Allocation(n_bytes, "aten.add", shape, "float32", (Frame("model.py", line, "forward"),), run=0)


def test_shapes_are_told_as_ranges() -> None:
    """One shape as it is, several of a rank as ranges, several ranks as that."""
    assert shapes([allocation(1, (1, 64))]) == "[1, 64]"
    assert shapes([allocation(1, (1, 24)), allocation(1, (1, 5)), allocation(1, (1, 9))]) == "[1, 5..24]"
    assert shapes([allocation(1, ()), allocation(1, (2,))]) == "various shapes"


def test_allocations_are_grouped_by_line_operation_and_dtype() -> None:
    """Two shapes of one line are one group, two lines are two; empty storages are none."""
    groups = by_line([allocation(1, (1,)), allocation(1, (2,)), allocation(2, (1,)), allocation(3, (0,), n_bytes=0)])
    assert [len(group) for group in groups.values()] == [2, 1]


@pytest.mark.parametrize("room", [3, 5, 12])
def test_a_long_explanation_keeps_to_its_room_and_tells_what_it_left_out(room: int) -> None:
    """However many lines there are, the text fits, and its last line is the snapshot."""
    lines = tuple(
        Line(f"model.py:{n} forward", "", "aten.add", "float32", "[1]", 100.0, 4000, 40, "", f"list `kept{n}`")
        for n in range(30)
    )
    text = Explanation(lines, runs=40, snapshot=Path("x.pickle")).text(room)
    assert len(text) <= room
    assert text[-1].endswith("x.pickle")
    assert "more line" in text[-2]


def test_a_card_of_known_size_is_full_after_its_headroom() -> None:
    """On a card with 10 MiB left at 4,096 B a sample: 2,560 samples."""
    recording = vram.replay(lambda _: None, [0] * 20)
    figures = 1000 + 4096 * torch.arange(200).reshape(10, 20).numpy()
    full = int(figures[-1, -1]) + 10 * 2**20
    grown = replace(
        recording,
        channels={"requested": figures},
        before={"requested": 0},
        seconds=figures.astype("float64"),
        environment={"device_bytes": full},
    )
    with pytest.raises(vram.MemoryGrowth, match=r"a card of .* is full after 2,560 samples"):
        vram.assert_stable(grown)
