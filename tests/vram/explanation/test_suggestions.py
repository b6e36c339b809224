"""Suggestions: each is applied in a program that is otherwise the same, and saves the bytes it says; none is made of
programs that only look alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

import vram
from vram.explanation import suggestions as patterns
from vram.explanation.peak import breakdown
from vram.session import SessionOptions, VramSession

Step = Callable[[Any], object]
DEVICES = ("cpu", "simulated:A100-40")
LESS = "38,912 B (38.00 KiB) less at the peak of sample 0: "  # of 19 logits of 512 words


def traced(step: Step, sample: Any, device: str = "cpu") -> tuple[int, dict[str, Any]]:
    """The recorded peak of a step, and what its traced rerun says."""
    recording = VramSession(SessionOptions(device=device)).replay(step, [sample], laps=3)
    at_peak, why = breakdown(recording)
    assert at_peak is not None, why
    assert "no_suggestions" not in at_peak
    return recording.peak_bytes(), at_peak


def suggested(step: Step, sample: Any) -> list[str]:
    """The patterns that are found in a step."""
    return [one["pattern"] for one in traced(step, sample)[1].get("suggestions", ())]


def saved(wasteful: Step, mended: Step, sample: Any, device: str = "cpu") -> tuple[dict[str, Any], int]:
    """The one suggestion for a step, and by how much lower the peak of the mended one is."""
    before, at_peak = traced(wasteful, sample, device)
    after, mended_at_peak = traced(mended, sample, device)
    (suggestion,) = at_peak["suggestions"]
    assert "suggestions" not in mended_at_peak
    return suggestion, before - after


class Head(nn.Module):
    """Hidden states [B, T, 16] in, logits [B, T, 512] out."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 512, bias=False)

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, hidden: torch.Tensor, logits_to_keep: int = 0) -> torch.Tensor:
        logits: torch.Tensor = self.head((hidden * 2)[:, -logits_to_keep:])
        return logits


class PlainHead(Head):
    """The same, without a way to keep fewer logits."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(hidden)


HEAD, PLAIN = Head(), PlainHead()


@pytest.mark.parametrize("device", DEVICES)
def test_full_logits(device: str) -> None:
    """Logits of 20 positions of which the last is read: one sequence's saving is exact, on the CPU and a simulated
    card."""
    with VramSession(SessionOptions(device=device)).on_device():
        model = Head().to("cuda" if device != "cpu" else "cpu")
        hidden = torch.zeros(1, 20, 16, device=model.head.weight.device)
    every = torch.inference_mode()(lambda x: model(x)[:, -1].softmax(-1))
    last = torch.inference_mode()(lambda x: model(x, logits_to_keep=1)[:, -1].softmax(-1))
    suggestion, less_bytes = saved(every, last, hidden, device)
    assert suggestion["pattern"] == "full logits"
    assert suggestion["saves_bytes"] == less_bytes == 19 * 512 * 4
    text = suggestion["text"]
    assert text.startswith(f"{LESS}pass `logits_to_keep=1` to the model: logits of 20 positions are made (")
    assert text.endswith(", and the last alone is read")


def test_full_logits_of_several_positions_and_sequences() -> None:
    """The last three positions are kept where those are read; of several sequences the figure is the most that it may
    be; a model without the argument has another way out."""
    hidden = torch.zeros(2, 20, 16)
    suggestion, less_bytes = saved(
        torch.inference_mode()(lambda x: HEAD(x)[:, -3:].sum()),
        torch.inference_mode()(lambda x: HEAD(x, logits_to_keep=3).sum()),
        hidden,
    )
    assert "pass `logits_to_keep=3`" in suggestion["text"]
    assert suggestion["text"].startswith("up to ")
    assert 0 < less_bytes <= suggestion["saves_bytes"]
    (plain,) = traced(torch.inference_mode()(lambda x: PLAIN(x)[:, -1].argmax()), hidden[:1])[1]["suggestions"]
    assert plain["text"].startswith(f"{LESS}apply the output head to what is read alone: ")


def test_full_logits_of_a_model_within_another() -> None:
    """The module around it reads the last position alone, and may pass the argument as its caller would."""

    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = Head()

        def forward(self, hidden: torch.Tensor, keep: int = 0) -> torch.Tensor:
            logits: torch.Tensor = self.model(hidden, logits_to_keep=keep)
            return logits[:, -1].softmax(-1)

    wrapper = Wrapper()
    every, last = torch.inference_mode()(wrapper), torch.inference_mode()(lambda x: wrapper(x, 1))
    suggestion, less_bytes = saved(every, last, torch.zeros(1, 20, 16))
    assert suggestion["saves_bytes"] == less_bytes == 19 * 512 * 4
    assert suggestion["text"].startswith(f"{LESS}pass `logits_to_keep=1` to the model: ")


KEPT: list[Any] = []


@pytest.mark.parametrize(
    "step",
    [
        lambda x: HEAD(x).softmax(-1)[:, -1].sum(),
        lambda x: HEAD(x)[:, 0].sum(),
        lambda x: HEAD(x),
        lambda x: [last := HEAD(x)[:, -1], last.sum()],
        lambda x: len([logits := HEAD(x), logits[:, -1].sum(), logits.tolist()]),
        lambda x: len([logits := HEAD(x), logits[:, -1].sum(), logits.numpy().mean()]),
        lambda x: len([logits := HEAD(x), logits[:, -1].sum(), logits[torch.zeros(1, dtype=torch.long)]]),
        lambda x: HEAD(x[:, -1:])[:, -1].sum(),
        lambda x: KEPT.__setitem__(slice(0, None), [HEAD(x)]) or KEPT[0][:, -1].sum(),
    ],
    ids=["all", "first", "returned", "view returned", "tolist", "numpy", "indexed", "one position", "kept"],
)
def test_no_logits_that_are_needed(step: Step) -> None:
    """Logits that are read as a whole, by whatever way, that another position is read of, or that leave the step."""
    assert suggested(torch.inference_mode()(step), torch.zeros(1, 20, 16)) == []
    KEPT.clear()


HALF = torch.ones(1, 20, 512, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("wasteful", "mended", "less_bytes", "words"),
    [
        (
            lambda x: (x * 2).float()[:, -1].softmax(-1),
            lambda x: (x * 2)[:, -1].float().softmax(-1),
            19 * 512 * 4,
            "take the part that is read first, then make it float32: bfloat16 [1, 20, 512] is copied to float32 as a",
        ),
        (
            lambda x: (x * 2).float().argmax(-1),
            lambda x: (x * 2).argmax(-1),
            20 * 512 * 4 - 20 * 8,  # the half tensor is alive with the positions, where the copy was made after it
            "take `argmax` of the bfloat16 tensor itself: bfloat16 [1, 20, 512] is copied to float32 as a whole (",
        ),
    ],
    ids=["part", "order"],
)
def test_float32_copy(wasteful: Step, mended: Step, less_bytes: int, words: str) -> None:
    """A copy of which a part is read, and one of which only the order is."""
    suggestion, measured_bytes = saved(torch.inference_mode()(wasteful), torch.inference_mode()(mended), HALF)
    assert suggestion["pattern"] == "float32 copy"
    assert suggestion["saves_bytes"] == measured_bytes == less_bytes
    assert words in suggestion["text"]


@pytest.mark.parametrize(
    "step",
    [
        lambda x: x.softmax(-1, dtype=torch.float32).to(x.dtype),
        lambda x: x.float().softmax(-1),
        lambda x: x.float().exp().sum(),
        lambda x: [copy := x.float(), copy[:, -1].sum()],
        lambda x: len([copy := x.float(), copy[:, -1].sum(), copy.numpy().mean()]),
        lambda x: x.float().add_(1)[:, -1].sum(),
        lambda x: len([half := x * 2, copy := half.float(), half.zero_(), copy.argmax().item()]),
        lambda x: x.float()[..., ::2].sum(),
        lambda x: x.double().argmax(),
        lambda x: x.to(torch.float16)[:, -1].sum(),
    ],
    ids=["softmax", "upcast", "sum", "returned", "numpy", "written", "changed after", "every other", "double", "half"],
)
def test_no_float32_copy_that_is_needed(step: Step) -> None:
    """Copies for arithmetic in float32, and those that others may read."""
    assert suggested(torch.inference_mode()(step), HALF) == []


SCORES = torch.zeros(1, 8, 32, 32)


def small(mask: torch.Tensor) -> torch.Tensor:
    return torch.ones(1, 1, 32, 32, device=mask.device)


def attend(query: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return scaled_dot_product_attention(query, query, query, attn_mask=mask)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("wasteful", "mended", "words"),
    [
        (
            lambda x: x + small(x).expand(1, 8, 32, 32).contiguous(),
            lambda x: x + small(x).expand(1, 8, 32, 32),
            "pass it expanded, without the copy: a tensor [1, 1, 32, 32] is copied out to [1, 8, 32, 32] (",
        ),
        (
            lambda x: x.masked_fill(small(x).bool().repeat(1, 8, 1, 1), 0),
            lambda x: x.masked_fill(small(x).bool().expand(1, 8, -1, -1), 0),
            "use `expand` in place of `repeat`: a tensor [1, 1, 32, 32] is copied out to [1, 8, 32, 32] (",
        ),
        (
            lambda x: attend(x, small(x).expand(1, 8, 32, 32).clone()),
            lambda x: attend(x, small(x).expand(1, 8, 32, 32)),
            "pass it expanded, without the copy: a tensor [1, 1, 32, 32] is copied out to [1, 8, 32, 32] (",
        ),
    ],
    ids=["added", "repeated", "attention"],
)
def test_expanded_mask(device: str, wasteful: Step, mended: Step, words: str) -> None:
    """A copy of a mask for every head, whose readers broadcast: the small mask lives on instead."""
    with VramSession(SessionOptions(device=device)).on_device():
        scores = torch.zeros(1, 8, 32, 32, device="cuda" if device != "cpu" else "cpu")
    inference = torch.inference_mode()
    suggestion, measured_bytes = saved(inference(wasteful), inference(mended), scores, device)
    assert suggestion["pattern"] == "expanded mask"
    assert suggestion["saves_bytes"] == measured_bytes
    assert words in suggestion["text"]


@pytest.mark.parametrize(
    "step",
    [
        lambda x: x + small(x).expand(1, 8, 32, 32).contiguous().add_(1),
        lambda x: len([one := small(x), mask := one.expand(1, 8, 32, 32).contiguous(), one.zero_(), (x + mask).sum()]),
        lambda x: x.view(-1) + small(x).expand(1, 8, 32, 32).contiguous().view(-1),
        lambda x: [mask := small(x).expand(1, 8, 32, 32).contiguous(), (x + mask).sum()],
        lambda x: x @ small(x).expand(1, 8, 32, 32).contiguous(),
        lambda x: x + (x * 2).clone(),
        lambda x: x + x[:, :, :, :16].repeat(1, 1, 1, 2),
        lambda x: len([mask := small(x).expand(1, 8, 32, 32).contiguous(), x + mask, mask.numpy().mean()]),
    ],
    ids=["written", "changed after", "viewed", "returned", "multiplied", "not expanded", "tiled", "numpy"],
)
def test_no_copy_that_is_needed(step: Step) -> None:
    """Copies that are written to, seen in another shape, read by what needs them whole, or returned."""
    assert suggested(torch.inference_mode()(step), SCORES) == []


MODEL = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(64, 64), nn.Sigmoid())))


def test_graph_kept() -> None:
    """Activations kept for a backward pass that can't come any more: the peak under `no_grad` is what it says."""
    suggestion, measured_bytes = saved(
        lambda x: MODEL(x).argmax().item(), torch.no_grad()(lambda x: MODEL(x).argmax().item()), torch.ones(64, 64)
    )
    assert suggestion["pattern"] == "graph kept"
    assert suggestion["saves_bytes"] == measured_bytes > 0
    assert "peak of sample 0: run the step under `torch.no_grad()`: " in suggestion["text"]


def trained(x: torch.Tensor) -> None:
    MODEL(x).sum().backward()
    MODEL.zero_grad()


def kept_loss(x: torch.Tensor) -> None:
    KEPT[:] = [MODEL(x).sum()]


def gradient_of_input(x: torch.Tensor) -> float:
    x = x.clone().requires_grad_()
    return float(torch.autograd.grad(MODEL(x).sum(), x)[0].sum())


def needs_a_graph(x: torch.Tensor) -> float:
    if not (output := MODEL(x)).requires_grad:
        raise ValueError("mine")
    return float(output.sum().item())


@pytest.mark.parametrize(
    "step",
    [trained, kept_loss, gradient_of_input, needs_a_graph, MODEL, lambda x: MODEL(x).sum(), torch.no_grad()(MODEL)],
    ids=["backward", "kept", "grad", "needed", "output returned", "loss returned", "no graph"],
)
def test_no_graph_that_may_be_needed(step: Step) -> None:
    """Training, and whatever leaves something that a backward pass could run on; a step that needs the graph."""
    assert suggested(step, torch.ones(64, 64)) == []
    KEPT.clear()


def previous_kept(batches: list[torch.Tensor]) -> None:
    for batch in batches:
        output = batch.repeat(1, 4)
        output.sum()


def previous_gone(batches: list[torch.Tensor]) -> None:
    output = None
    for batch in batches:
        output = None
        output = batch.repeat(1, 4)
        output.sum()
    assert output is not None


def previous_read(batches: list[torch.Tensor]) -> None:
    output = batches[0]
    for batch in batches:
        output = batch.repeat(1, 4) + output.mean()


def previous_in_a_list(batches: list[torch.Tensor]) -> None:
    outputs = []
    for batch in batches:
        output = batch.repeat(1, 4)
        outputs.append(output)


def previous_held_by_another(batches: list[torch.Tensor]) -> None:
    class Last:
        output: Any = None

        def make(self, batch: torch.Tensor) -> torch.Tensor:
            made = batch.repeat(1, 4)
            self.output = made
            return made

    last = Last()
    for batch in batches:
        output = last.make(batch)
        output.sum()


def previous_in_a_dictionary(batches: list[torch.Tensor]) -> None:
    outputs = {}
    for batch in batches:
        outputs["last"] = batch.repeat(1, 4)
        outputs["last"].sum()


BATCHES = [torch.ones(64, 32) for _ in range(3)]


def test_previous_output() -> None:
    """The variable that holds the output before is named, with the line; emptied first, the peak is what it says."""
    suggestion, measured_bytes = saved(previous_kept, previous_gone, BATCHES)
    assert suggestion["pattern"] == "previous output"
    assert suggestion["saves_bytes"] == measured_bytes > 0
    assert "peak of sample 0: set `output = None` before " in suggestion["text"]
    assert " previous_kept computes the next: " in suggestion["text"]


LOST: list[bool] = []


def previous_with_locals(batches: list[torch.Tensor]) -> None:
    variables = locals()
    for batch in batches:
        output = batch.repeat(1, 4)
        output.sum()
        LOST.append("batches" not in variables)


def test_a_step_keeps_its_own_dictionary_of_locals() -> None:
    """Before Python 3.13 `locals()` is the one dictionary of its frame: emptying a variable in the rerun leaves it."""
    traced(previous_with_locals, BATCHES)
    assert len(LOST) > 5 * len(BATCHES)  # three laps, the traced run, once more, and the one with the variable emptied
    assert not any(LOST)


@pytest.mark.parametrize(
    "step", [previous_gone, previous_read, previous_in_a_list, previous_held_by_another, previous_in_a_dictionary]
)
def test_no_previous_output_that_is_needed(step: Step) -> None:
    """One that the statement reads, on whichever of its lines; one in a list; one that something else keeps longer."""
    assert suggested(step, BATCHES) == []


def test_attentions_returned() -> None:
    """Maps that a transformers model returns and nobody reads; none where they are read, looked at, or returned."""
    from tests.vram.zoo.tiny import llama

    model = llama(attn_implementation="eager")

    def answer(ids: torch.Tensor, **more: Any) -> Any:
        return model(ids, use_cache=False, logits_to_keep=1, **more)

    inference = torch.inference_mode()
    ids = torch.ones(1, 60, dtype=torch.int64)
    suggestion, measured_bytes = saved(
        inference(lambda x: answer(x, output_attentions=True).logits.argmax()),
        inference(lambda x: answer(x).logits.argmax()),
        ids,
    )
    assert suggestion["pattern"] == "attentions returned"
    assert suggestion["saves_bytes"] == measured_bytes == 4 * 60 * 60 * 4
    assert (
        "peak of sample 0: call LlamaForCausalLM without `output_attentions=True`: it returns 2 " in suggestion["text"]
    )
    for used in (
        lambda x: answer(x, output_attentions=True).attentions[0].sum(),
        lambda x: len([each.sum() for each in answer(x, output_attentions=True).attentions or ()]),
        lambda x: len(answer(x, output_attentions=True).attentions),
        lambda x: answer(x, output_attentions=True).attentions,
    ):
        assert suggested(inference(used), ids) == []


def test_an_error_is_a_gap_of_the_explanation(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pattern that raises: the breakdown, the check and its message stay, and the reason is said."""

    def broken(_: Any) -> Any:
        raise ValueError("mine")

    session = VramSession(SessionOptions())
    recording = session.replay(previous_kept, [BATCHES], laps=3)
    monkeypatch.setattr(patterns, "PATTERNS", {"broken": broken})
    with pytest.raises(vram.PeakExceeded, match="alive at the peak of sample 0"):
        session.assert_peak(recording, 1)
    assert session.summary(recording).absent["suggestions"] == "ValueError: mine"
    assert session.summary(recording).at_peak is not None


@pytest.mark.parametrize("samples", [1, 2])
def test_a_peak_that_another_run_does_not_have(samples: int) -> None:
    """A step whose every other call needs more: that a rerun with a change needs less says nothing of the change,
    whether laps differ or only the call after the traced one does."""
    calls = [0] * samples
    weight = torch.ones(64, requires_grad=True)

    def step(_: int) -> float:
        calls.append(len(calls))
        if len(calls) % 2:
            torch.zeros(100_000)
        return float((weight * 2).detach().sum())

    recording = VramSession(SessionOptions()).replay(step, range(samples), laps=3)
    assert len(set(recording.channels["requested_peak"].ravel().tolist())) == 2
    at_peak, why = breakdown(recording)
    assert at_peak is not None, why
    assert at_peak["bytes"] == recording.peak_bytes()  # the traced run is one that needs more
    assert "suggestions" not in at_peak


def test_reads_that_nobody_follows() -> None:
    """A thread of a pool that was there before the sample reads all logits: that they are not read is not certain, and
    the reason is said. One that waits throughout changes nothing."""
    head, ids = Head(), torch.zeros(1, 20, 16)

    def step(hidden: torch.Tensor, read: Step) -> object:
        logits = head(hidden)
        return float(logits[:, -1].sum()), read(logits)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(list).result()
        inference = torch.inference_mode()
        assert suggested(inference(lambda x: step(x, lambda _: None)), ids) == ["full logits"]
        recording = vram.replay(inference(lambda x: step(x, lambda one: pool.submit(one.sum).result())), [ids])
        at_peak, _ = breakdown(recording)
    assert at_peak is not None
    assert "suggestions" not in at_peak
    assert "ThreadPoolExecutor-" in at_peak["no_suggestions"]


def test_a_thread_that_reads_no_tensor() -> None:
    """tqdm's own, which any progress bar leaves behind and which wakes every ten seconds, here every millisecond."""
    monitor = pytest.importorskip("tqdm._monitor").TMonitor(pytest.importorskip("tqdm").tqdm, 0.001)
    head, ids, woken = Head(), torch.zeros(1, 20, 16), []

    @torch.inference_mode()
    def step(hidden: torch.Tensor) -> float:
        logits = head(hidden)
        before = monitor.woken
        for _ in range(10_000):  # ends in some milliseconds; where it never wakes, the last line fails
            if monitor.woken != before:
                break
            time.sleep(0.001)
        woken.append(monitor.woken)
        return float(logits[:, -1].sum())

    try:
        assert suggested(step, ids) == ["full logits"]
        assert len(set(woken)) > 1
    finally:
        monitor.exit()


def test_a_peak_that_is_not_the_recorded_one() -> None:
    """A cache that is filled once: the figures of the rerun are not those of the recording, and nothing is said."""
    made: list[int] = []

    def step(batches: list[torch.Tensor]) -> None:
        made.append(1)
        if len(made) == 1:
            torch.zeros(1_000_000)
        previous_kept(batches)

    assert suggested(step, BATCHES) == []
