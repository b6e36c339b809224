"""Baseline costs what plain LLaVA costs: no code of ours, the same logits, the same bytes."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from himap import HimapLlavaForConditionalGeneration
from llava.answering import Answerer
from llava.modes import MODES
from llava.questions import Question
from tests.memory.probes import entered_code
from vram.session import VramSession


@pytest.fixture
def plain(model: HimapLlavaForConditionalGeneration, switched: Callable[..., None]) -> LlavaForConditionalGeneration:
    """transformers' own LLaVA on the very same weights: nothing is copied."""
    switched("baseline")
    with torch.device("meta"):
        other = LlavaForConditionalGeneration(model.config)
    other.load_state_dict(model.state_dict(), assign=True)
    for name, buffer in model.named_buffers():  # those that no state_dict holds
        owner, _, attribute = name.rpartition(".")
        other.get_submodule(owner).register_buffer(attribute, buffer, persistent=False)
    other.generation_config = model.generation_config
    return other.eval().requires_grad_(False)


def logits(model: Any, answerer: Answerer, question: Question, **options: Any) -> torch.Tensor:
    """Logits (1, tokens, vocabulary) of the prompt."""
    with torch.inference_mode():
        return model(**answerer.inputs(question), **options).logits


def cost(vram: VramSession, work: Callable[[], object]) -> tuple[int, int]:
    """Live and peak bytes that `work` adds, warmed up, its result dropped."""
    work()
    gc.collect()
    with vram.measure() as measured:
        work()
        gc.collect()
    return measured.live_bytes - measured.before_bytes, measured.peak_bytes - measured.before_bytes


def test_baseline_enters_no_code_of_ours(
    answerer: Answerer, with_image: Question, switched: Callable[..., None]
) -> None:
    """Spied on: a whole answer in baseline runs nothing of himap beyond forward's look at the flags."""
    switched("baseline")
    with entered_code() as entered:
        answerer.answer(with_image)
    assert entered == set()


@pytest.mark.parametrize("mode", [mode.name for mode in MODES.values() if mode.prunes])
def test_the_spy_sees_the_other_modes(
    answerer: Answerer, with_image: Question, mode: str, switched: Callable[..., None]
) -> None:
    """The check above can fail: every other mode is caught entering the selective forward."""
    switched(mode)
    with entered_code() as entered:
        answerer.answer(with_image)
    assert "decoder.py:_selective_forward" in entered


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_baseline_gives_plain_llavas_logits(
    answerer: Answerer,
    model: HimapLlavaForConditionalGeneration,
    plain: LlavaForConditionalGeneration,
    with_image: Question,
    attention: str,
    use_cache: bool,
) -> None:
    """Bit for bit, with and without a cache, with either attention."""
    model.set_attn_implementation(attention)
    plain.set_attn_implementation(attention)
    ours = logits(model, answerer, with_image, use_cache=use_cache)
    assert torch.equal(ours, logits(plain, answerer, with_image, use_cache=use_cache))


def test_baseline_costs_not_one_byte_more(
    vram: VramSession,
    answerer: Answerer,
    model: HimapLlavaForConditionalGeneration,
    plain: LlavaForConditionalGeneration,
    questions: list[Question],
) -> None:
    """A whole answer leaves and peaks at the same bytes as plain LLaVA's, question by question."""
    other = Answerer(answerer.tokenizer, plain, answerer.image_processor, **answerer.lengths)
    for question in questions[:3]:
        ours = cost(vram, lambda question=question: answerer.answer(question))
        assert ours == cost(vram, lambda question=question: other.answer(question))
        assert ours[0] == 0


def test_switching_modes_brings_back_the_same_bytes_and_logits(
    answerer: Answerer,
    model: HimapLlavaForConditionalGeneration,
    with_image: Question,
    switched: Callable[..., None],
) -> None:
    """baseline -> himap -> custom -> baseline on one model: the last is the first, to the byte and to the bit."""
    seen = {}
    for turn, mode in enumerate((*MODES, "baseline")):
        switched(mode)
        torch.manual_seed(0)
        seen[turn, mode] = logits(model, answerer, with_image, use_cache=False)
        answerer.answer(with_image)
    switched("baseline")
    assert torch.equal(seen[0, "baseline"], seen[len(MODES), "baseline"])
    for (_, mode), pruned in seen.items():
        if mode != "baseline":
            assert not torch.equal(pruned[0, -1], seen[0, "baseline"][0, -1]), f"{mode} changes nothing"


def test_switching_modes_leaves_no_byte_behind(
    vram: VramSession, answerer: Answerer, with_image: Question, switched: Callable[..., None]
) -> None:
    """After every other mode has answered, baseline holds exactly the bytes it held before."""
    live_bytes = []
    for mode in (*MODES, "baseline"):
        switched(mode)
        answerer.answer(with_image)
        gc.collect()
        with vram.measure() as measured:
            live_bytes.append(measured.live_bytes)
    assert live_bytes[0] == live_bytes[-1]
