"""Remarks that go with a simulated figure: what it assumes, and memory at its peak that is not counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import BartConfig, BartForConditionalGeneration

import vram
from tests.vram.simulated.devices import device
from tests.vram.zoo.tiny import llama
from vram.cards import Card
from vram.meters.simulated import SimulatedCudaMeter
from vram.simulated import assumptions
from vram.simulated.known_values import UnknownValue
from vram.simulated.remarks import Remarks, Uncounted
from vram.summary.reader import recording_from_json
from vram.verdict.summarize import summarize

HERE = Path(__file__).name


def remarks_of(step: Callable[[], object], card: Card | None = None) -> list[str]:
    """Remarks on a step alone, without their lines."""
    cuda = device(card) if card else device()
    with cuda, torch.inference_mode(), cuda.remarking() as remarks:
        step()
        lines = remarks.lines(cuda.allocator.stats.requested_bytes.peak)
    return [line.partition(", first at")[0] for line in lines]


def on_card(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.randn(*shape, device="cuda", dtype=dtype)


FINITE: dict[str, Callable[[torch.Tensor], Any]] = {
    "not isfinite.all": lambda x: not torch.isfinite(x).all(),
    "isinf.any": lambda x: torch.isinf(x).any(),
    "either": lambda x: torch.isinf(x).any() or torch.isnan(x).any(),
    "both in one": lambda x: (torch.isinf(x) | x.isnan()).any(),
    "by rows": lambda x: (~x.isfinite().all(dim=-1)).any(),
    "a view": lambda x: x.isnan().view(-1)[:5].any(),
}


@pytest.mark.parametrize("elements", [64, 2**21])
@pytest.mark.parametrize("ask", FINITE.values(), ids=FINITE)
def test_all_activations_are_assumed_finite(ask: Callable[[torch.Tensor], Any], elements: int) -> None:
    """However it is asked, of tensors of any size; the assumption is remarked on, with its line."""
    cuda = device()
    with cuda, cuda.remarking() as remarks:
        assert bool(ask(on_card(elements // 32, 32))) is False
        lines = remarks.lines(0)
    assert lines == (f"assumed: all activations are finite, first at {lines[0].partition('first at ')[2]}",)
    assert f"simulated/{HERE}:" in lines[0]


def test_finiteness_that_is_known_is_not_assumed() -> None:
    """Values from outside say it themselves."""
    with device():
        known = torch.tensor([1.0, torch.inf]).cuda()
        assert not known.isfinite().all()
        assert known.isinf().tolist() == [False, True]


def test_a_tensor_that_something_was_written_into_is_not_assumed_any_more() -> None:
    """Through a view too."""
    with device():
        finite = on_card(64).isfinite()
        finite[3:5].copy_(on_card(2) > 0)
        with pytest.raises(UnknownValue):
            bool(finite.all())


def test_a_comparison_of_activations_is_no_assumption() -> None:
    """The rule is for finiteness alone; `and` with what is false is false, whatever the other is."""
    with device():
        unknown, known = on_card(64) > 0, torch.zeros(64, dtype=torch.bool, device="cuda")
        with pytest.raises(UnknownValue):
            bool(unknown.all())
        assert not (unknown & known).any()
        assert (unknown | ~known).all()
        with pytest.raises(UnknownValue):
            bool((unknown | known).all())


def test_an_assumed_choice_is_remarked_on_where_something_depends_on_it() -> None:
    """Values that follow from it too, written in place or copied; a choice that nobody reads decides nothing."""

    def nobody_reads() -> None:
        on_card(2, 9).max(dim=-1)
        on_card(9).topk(3)

    def reads() -> list[int]:
        tokens = torch.zeros(2, 2, dtype=torch.int64, device="cuda")
        tokens[:, 1] = on_card(2, 9).argmax(dim=-1)
        return (tokens.clone() + 1).tolist()[0]

    assert remarks_of(nobody_reads) == []
    assert remarks_of(reads) == ["assumed: argmax chooses index 7"]
    assert remarks_of(lambda: on_card(9).argmin(dim=-1, keepdim=True)) == []
    least = remarks_of(lambda: on_card(9, 9).min(dim=-1)[1].cpu().numpy())
    assert least == ["assumed: min chooses the first positions"]
    assert remarks_of(lambda: on_card(9).topk(3)[1].nonzero()) == ["assumed: topk chooses the first positions"]


def test_beam_search_runs_to_its_length() -> None:
    """Every beam has all tokens, and the assumptions are remarked on."""
    lengths = []

    def search() -> None:
        model = llama().half().to("cuda")
        ids = torch.ones(2, 5, dtype=torch.int64, device="cuda")
        for early_stopping in (False, True):
            options = {"num_beams": 3, "max_new_tokens": 3, "do_sample": False, "early_stopping": early_stopping}
            lengths.append(model.generate(ids, **options).shape)

    assert set(remarks_of(search)) == {
        "assumed: beam search runs to its length",
        "assumed: topk chooses the first positions",
    }
    assert lengths == [(2, 8), (2, 8)]


def test_beam_search_is_refused_where_transformers_chooses_beams_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function that was renamed would end answers too soon, in silence."""
    monkeypatch.setattr(assumptions, "_TAKES_LAST", (assumptions._TAKES_LAST[0], "GenerationMixin._renamed"))

    def search() -> None:
        ids = torch.ones(1, 5, dtype=torch.int64, device="cuda")
        llama().half().to("cuda").generate(ids, num_beams=2, max_new_tokens=2, do_sample=False)

    with pytest.raises(UnknownValue, match="_beam_search"):
        remarks_of(search)


def test_eta_sampling_and_an_assistant_are_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eta sampling checks a distribution, an assistant its confidence: both are assumed well."""
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)  # torch.compile turns it off for good

    def generate(**options: Any) -> None:
        model = llama().half().to("cuda")
        ids = torch.ones(1, 5, dtype=torch.int64, device="cuda")
        assert model.generate(ids, max_new_tokens=2, **options).shape == (1, 7)

    eta = remarks_of(lambda: generate(do_sample=True, eta_cutoff=1e-3))
    assert "assumed: values are valid where torch.distributions checks them" in eta
    assistant = remarks_of(lambda: generate(do_sample=False, assistant_model=llama().half().to("cuda")))
    assert "assumed: the assistant model is confident of every token" in assistant


def test_models_that_ask_in_half_precision_whether_activations_are_finite_run() -> None:
    """BART asks in each layer of its encoder, and is answered once."""

    def encode() -> None:
        sizes = {"d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "vocab_size": 64}
        layers = {"encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
        model = BartForConditionalGeneration(BartConfig(**sizes, **layers, max_position_embeddings=32)).half()
        model.to("cuda").eval().get_encoder()(torch.ones(1, 8, dtype=torch.int64, device="cuda"))

    assert remarks_of(encode) == ["assumed: all activations are finite"]


def convolution(channels: int = 8, side: int = 64) -> torch.Tensor:
    """A step whose peak is in the convolution: its operands are gone when it ends."""
    result: torch.Tensor = nn.Conv2d(channels, channels, 3, device="cuda").half()(on_card(1, channels, side, side))
    return result


OLD = Card("8GiB", 8 * 2**30, (8, 0), context_bytes=0)
HOPPER = Card("8GiB", 8 * 2**30, (9, 0), context_bytes=0)


@torch.inference_mode(False)
def attend_and_back() -> None:
    """Attention and its backward pass, in one kernel each."""
    with torch.enable_grad(), sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
        q = on_card(1, 2, 64, 64, dtype=torch.float32).requires_grad_()
        torch.nn.functional.scaled_dot_product_attention(q, q, q).sum().backward()


def bag_of_embeddings_back() -> Any:
    indices = torch.zeros(4, dtype=torch.int64, device="cuda")
    bags = indices, indices, indices[:1], indices[:1]
    return torch.ops.aten._embedding_bag_dense_backward(on_card(1, 8), *bags, 64, False, 0, None)


def embeddings_back(n: int, *, scale_grad_by_freq: bool = False) -> Any:
    indices = torch.zeros(n, dtype=torch.int64, device="cuda")
    return torch.ops.aten.embedding_dense_backward(on_card(n, 8), indices, 64, -1, scale_grad_by_freq)


UNCOUNTED: dict[str, tuple[Callable[[], Any], str]] = {
    "convolution": (convolution, "cuDNN's workspace of a convolution"),
    "FFT": (lambda: torch.fft.rfft(on_card(4096, dtype=torch.float32)), "cuFFT's workspace"),
    "SVD": (
        lambda: torch.linalg.svd(on_card(64, 64, dtype=torch.float32)),
        "the workspace of a decomposition (cuSOLVER, MAGMA)",
    ),
    "inverse": (
        lambda: torch.linalg.inv(on_card(64, 64, dtype=torch.float32)),
        "the workspace of a decomposition (cuSOLVER, MAGMA)",
    ),
    "places of pivots": (
        lambda: torch.lu_unpack(on_card(64, 64, dtype=torch.float32), on_card(64).int()),
        "temporary memory of lu_unpack",
    ),
    "so many places": (
        lambda: torch.nonzero_static(on_card(64), size=8),
        "temporary memory of nonzero_static",
    ),
    "attention by a kernel's name": (
        lambda: torch.ops.aten._flash_attention_forward(
            *[on_card(1, 8, 2, 16)] * 3, None, None, 8, 8, 0.0, is_causal=False, return_debug_mask=False
        ),
        "copies and sums of an operation of attention that is called by itself",
    ),
    "sort of half precision": (lambda: on_card(8192).sort(), "temporary memory of a sort of half precision"),
    "gradient of many embeddings": (
        lambda: embeddings_back(3073),
        "temporary memory of the gradient of an embedding",
    ),
    "gradient of embeddings by how frequent they are": (
        lambda: embeddings_back(1, scale_grad_by_freq=True),
        "temporary memory of the gradient of an embedding",
    ),
    "gradient of a bag of embeddings": (bag_of_embeddings_back, "temporary memory of the gradient of an embedding bag"),
}
COUNTED: dict[str, tuple[Callable[[], Any], Card]] = {
    "product": (lambda: on_card(64, 64) @ on_card(64, 64), OLD),
    "norm": (lambda: torch.linalg.vector_norm(on_card(64, 64)), OLD),
    "backward of attention": (attend_and_back, OLD),
    "gradient of embeddings": (lambda: embeddings_back(3072), OLD),
    "short sort": (lambda: on_card(4096).sort(), OLD),
    "sort on Hopper": (lambda: on_card(8192).sort(), HOPPER),
    "sort of single precision": (lambda: on_card(8192, dtype=torch.float32).sort(), OLD),
    "renorm": (lambda: torch.renorm(on_card(64, 64, dtype=torch.float32), 2, 0, 1.0), OLD),
}


@pytest.mark.parametrize(("step", "whose"), UNCOUNTED.values(), ids=UNCOUNTED)
def test_a_peak_in_an_operation_whose_memory_is_not_counted_is_remarked_on(step: Callable[[], Any], whose: str) -> None:
    """With whose memory it is, and the line."""
    (remark,) = remarks_of(step, OLD)
    assert remark.startswith(f"not counted: {whose}, at the peak, ")
    assert f"{HERE}:" in remark or "torch/" in remark


def test_deterministic_algorithms_are_remarked_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """They sort indices, which the others do not."""

    def add() -> torch.Tensor:
        return on_card(64, dtype=torch.float32).index_add_(0, on_card(8), on_card(8, dtype=torch.float32))

    assert remarks_of(add) == []
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    (remark,) = remarks_of(add)
    assert remark.startswith("not counted: temporary memory of deterministic algorithms, ")


def test_the_backward_pass_of_attention_is_remarked_on_before_ampere() -> None:
    """Its kernels are others there than those whose workspace is counted."""
    (remark,) = remarks_of(attend_and_back, Card("8GiB", 8 * 2**30, (7, 5), context_bytes=0))
    assert remark.startswith("not counted: part of the workspace of attention's backward pass before Ampere, ")


@pytest.mark.parametrize(("step", "card"), COUNTED.values(), ids=COUNTED)
def test_a_peak_whose_memory_is_counted_has_no_remark(step: Callable[[], Any], card: Card) -> None:
    """Neighbours of those that have one."""
    assert remarks_of(step, card) == []


def test_an_operation_below_the_peak_is_remarked_on_where_its_library_may_take_it_above() -> None:
    """Libraries commonly take as much as the operands: nearer to the peak than that counts, farther away does not."""

    def near() -> torch.Tensor:
        convolution()  # 128,192 B: weight, bias, input and output
        return on_card(70_000)

    def far() -> torch.Tensor:
        convolution()
        return on_card(140_000)

    (remark,) = remarks_of(near)
    assert remark.startswith("not counted: cuDNN's workspace of a convolution, ")
    assert ", 11.52 KiB below the peak, " in remark
    assert remarks_of(far) == []


def test_the_limit_that_cudnn_has_is_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDNN_CONV_WSCAP_DBG, in MiB."""
    monkeypatch.setenv("CUDNN_CONV_WSCAP_DBG", "256")
    (remark,) = remarks_of(convolution)
    assert remark.endswith("; at most 256.00 MiB (CUDNN_CONV_WSCAP_DBG=256)")


def test_the_highest_of_several_lines_is_named_and_the_others_are_counted() -> None:
    """One line for each library; what cannot reach the peak is left out."""
    remarks = Remarks()
    for line, alive_bytes, operand_bytes in (("a", 90, 20), ("b", 95, 20), ("c", 50, 20), ("b", 60, 60)):
        remarks.leave_out(Uncounted("its workspace", line, alive_bytes, operand_bytes))
    assert remarks.lines(100) == ("not counted: its workspace, 5 B below the peak, b, and 1 more lines",)


def test_a_recording_has_the_remarks_on_its_own_peak_and_its_verdict_is_the_same() -> None:
    """Not those on what ran before, nor on a sample below; every surface reads them from the summary."""
    meter = SimulatedCudaMeter(device())

    def step(side: int) -> None:
        if side:
            convolution(side=side)
        else:
            on_card(2**22)

    recording = vram.replay(step, [64, 32], laps=1, meters=[meter])
    summary = summarize(recording)
    assert summary.remarks == recording.remarks
    assert recording.remarks[0].startswith("not counted: cuDNN's workspace of a convolution, at the peak, ")
    assert recording_from_json(summary.to_json()).remarks == summary.remarks
    assert "remarks" not in summarize(vram.replay(step, [64, 0], laps=1, meters=[meter])).to_json()
    vram.assert_peak(recording, recording.peak_bytes())
