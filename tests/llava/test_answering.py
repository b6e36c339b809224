from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import LlavaProcessor

import himap.runs
import llava.answering
from himap import HimapLlavaForConditionalGeneration
from llava.answering import Answer, Answerer
from llava.builder import Checkpoint
from llava.conversation import build_prompt
from llava.errors import BadInput
from llava.images import Drawing, open_rgb, padded_to_square
from llava.modes import MODES, set_mode
from llava.placement import placed
from llava.questions import Question, embedded_questions

IMAGE_ID = torch.tensor([3])
WITH_IMAGE, TEXT_ONLY = embedded_questions(7)[0], embedded_questions(7)[6]
MakeAnswerer = Callable[..., Answerer]


@pytest.fixture
def make(checkpoint: Checkpoint, model: HimapLlavaForConditionalGeneration) -> MakeAnswerer:
    """An answerer on the session's model; 4 new tokens by default."""

    def make(**options: Any) -> Answerer:
        options = {"max_new_tokens": 4} | options
        return Answerer(checkpoint.tokenizer, model, checkpoint.image_processor, **options)

    return make


@pytest.fixture
def calls(model: HimapLlavaForConditionalGeneration, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The keyword arguments of every `generate`."""
    recorded: list[dict[str, Any]] = []
    generate = model.generate

    def spied(**options: Any) -> Any:
        recorded.append(options)
        return generate(**options)

    monkeypatch.setattr(model, "generate", spied)
    return recorded


def _greedy(model: HimapLlavaForConditionalGeneration, inputs: dict[str, Any], steps: int) -> list[int]:
    """Greedy decoding by hand: a whole forward for every token, the image token never chosen."""
    for _ in range(steps):
        logits = model(**inputs, use_cache=False).logits[0, -1]
        logits[IMAGE_ID] = float("-inf")
        inputs["input_ids"] = torch.cat([inputs["input_ids"], logits.argmax().view(1, 1)], dim=1)
    return inputs["input_ids"][0, -steps:].tolist()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("use_cache", [True, False])
def test_logits_are_of_the_last_token_alone(
    make: MakeAnswerer, model: HimapLlavaForConditionalGeneration, mode: str, use_cache: bool
) -> None:
    """No step makes the prompt's logits, 80 MB of 7B's in float32 that a higher peak elsewhere would hide."""
    set_mode(model, mode)
    made: list[int] = []
    hook = model.lm_head.register_forward_hook(lambda _module, _inputs, logits: made.append(logits.shape[1]))
    try:
        answer = make(min_new_tokens=4, use_cache=use_cache).answer(WITH_IMAGE)
    finally:
        hook.remove()

    assert made == [1] * answer.tokens


@pytest.mark.parametrize("mode", ["baseline", "himap", "custom-tome"])
@pytest.mark.parametrize("question", [WITH_IMAGE, TEXT_ONLY], ids=["image", "text"])
def test_answers_are_greedy(
    make: MakeAnswerer, model: HimapLlavaForConditionalGeneration, checkpoint: Checkpoint, mode: str, question: Question
) -> None:
    """The answer is what taking the likeliest token by hand gives, on the inputs transformers' processor makes."""
    set_mode(model, mode)
    processor = LlavaProcessor(
        checkpoint.image_processor,
        checkpoint.tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    image = None if question.image is None else open_rgb(question.image)
    inputs = dict(processor(text=build_prompt(question.text, image is not None), images=image, return_tensors="pt"))
    inputs.pop("mm_token_type_ids", None)
    prompt_tokens = inputs["input_ids"].shape[1]
    with torch.inference_mode():
        ids = _greedy(model, inputs, steps=4)

    answer = make().answer(question)

    text = checkpoint.tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert answer == Answer(text, tokens=4, prompt_tokens=prompt_tokens, seconds=answer.seconds)
    assert answer.seconds > 0


def test_images_are_padded_as_llava_pads_them(make: MakeAnswerer, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The picture in the middle of a square of CLIP's mean colour, one pixel nearer to the top left where it can't be;
    a picture that is square is left alone."""
    mean = tuple(int(255 * value) for value in checkpoint.image_processor.image_mean)
    for name, (width, height), place in (
        ("wide", (5, 2), (0, 1)),
        ("high", (2, 5), (1, 0)),
        ("square", (4, 4), (0, 0)),
    ):
        image = Image.new("RGB", (width, height), (250, 120, 0))
        image.save(tmp_path / f"{name}.png")
        padded = Image.new("RGB", (max(width, height),) * 2, mean)
        padded.paste(image, place)
        question = Question(name, "Which?", None, tmp_path / f"{name}.png")

        pixels = make(pad_images=True).inputs(question)["pixel_values"]

        expected = checkpoint.image_processor(padded, return_tensors="pt")["pixel_values"]
        assert torch.equal(pixels, expected)
        assert torch.equal(pixels, make().inputs(question)["pixel_values"]) is (name == "square")


def test_a_square_over_the_pixel_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The strip itself is small enough."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 99)
    with pytest.raises(BadInput, match=r"must have at most 99 pixels, got \(10, 2\)"):
        padded_to_square(Image.new("RGB", (10, 2)), (0.5, 0.5, 0.5))


def test_the_cache_is_used_in_every_mode(
    make: MakeAnswerer, model: HimapLlavaForConditionalGeneration, calls: list[dict[str, Any]]
) -> None:
    """Unless the caller wants none; text-only takes no pixels."""
    answerer = make(max_new_tokens=1)
    for mode in MODES:
        set_mode(model, mode)
        answerer.answer(TEXT_ONLY)
    set_mode(model, "custom-fps", custom_drop=True)
    answerer.answer(WITH_IMAGE)
    make(max_new_tokens=1, use_cache=False).answer(WITH_IMAGE)

    assert [call["use_cache"] for call in calls] == [True] * (len(MODES) + 1) + [False]
    assert ["pixel_values" in call for call in calls] == [False] * len(MODES) + [True] * 2


@pytest.mark.parametrize("use_cache", [True, False])
def test_himap_is_chosen_once_or_at_every_token(
    make: MakeAnswerer, model: HimapLlavaForConditionalGeneration, use_cache: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a cache the image is scored twice per answer (its two stages), without one twice per token."""
    set_mode(model, "himap")
    scored: list[int] = []
    score = himap.runs.column_scores
    monkeypatch.setattr(himap.runs, "column_scores", lambda *a, **k: scored.append(1) or score(*a, **k))

    answer = make(max_new_tokens=3, min_new_tokens=3, use_cache=use_cache).answer(WITH_IMAGE)

    assert len(scored) == (2 if use_cache else 2 * answer.tokens)


def test_never_asks_for_attentions(make: MakeAnswerer, calls: list[dict[str, Any]]) -> None:
    """The cause of the incident: `generate` is not asked to return attentions or scores."""
    make().answer(WITH_IMAGE)

    assert not {"output_attentions", "output_scores", "return_dict_in_generate"} & calls[0].keys()


def test_an_answer_ends_at_the_end_token(
    make: MakeAnswerer, model: HimapLlavaForConditionalGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts among the tokens generated; `min_new_tokens` holds it back."""
    answerer = make()
    with torch.inference_mode():
        second = _greedy(model, answerer.inputs(WITH_IMAGE), steps=2)[1]
    monkeypatch.setattr(model.generation_config, "eos_token_id", [2, second])

    assert answerer.answer(WITH_IMAGE).tokens == 2
    assert make(min_new_tokens=4).answer(WITH_IMAGE).tokens == 4


def test_every_token_is_marked(make: MakeAnswerer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A memory reading can be taken at each generated token."""
    marks: list[str] = []
    monkeypatch.setattr(llava.answering, "mark", marks.append)

    answer = make(max_new_tokens=3).answer(WITH_IMAGE)

    assert marks == ["token"] * answer.tokens


def test_the_image_token_is_never_generated(make: MakeAnswerer, model: HimapLlavaForConditionalGeneration) -> None:
    """Even where the weights like it best: without a cache the next forward would look for its image."""
    set_mode(model, "himap")
    hook = model.lm_head.register_forward_hook(lambda _module, _inputs, logits: logits.index_fill(-1, IMAGE_ID, 1000.0))
    try:
        assert make(use_cache=False).answer(WITH_IMAGE).tokens == 4
    finally:
        hook.remove()


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (5, 3), (200, 1), (1, 200), (3, 80)])
def test_small_images_keep_their_colour(
    make: MakeAnswerer, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image 1 or 3 pixels high is not taken for one with its channels first."""
    plain = Drawing(size, "RGB", 0)
    monkeypatch.setattr(Drawing, "draw", lambda self: llava.images.Image.new("RGB", self.size, (10, 200, 100)))

    pixels = make().inputs(Question("1", "a", None, plain))["pixel_values"]

    assert pixels.shape == (1, 3, 112, 112)
    assert pixels.flatten(2).std(dim=-1).max() < 1e-5
    assert pixels[0, 1].mean() > pixels[0, 2].mean() > pixels[0, 0].mean()


@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_kept_between_samples(
    make: MakeAnswerer, model: HimapLlavaForConditionalGeneration, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an answer, the ids and every logits tensor of it are gone."""
    set_mode(model, mode)
    seen: list[weakref.ref[Any]] = []
    hook = model.register_forward_hook(lambda _module, _inputs, output: seen.append(weakref.ref(output.logits)))
    try:
        make().answer(WITH_IMAGE)
    finally:
        hook.remove()
    gc.collect()

    assert len(seen) == 4
    assert all(reference() is None for reference in seen)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"max_new_tokens": 0}, "at least 1, got 0"),
        ({"min_new_tokens": 5}, r"in 0\.\.4, got 5"),
        ({"min_new_tokens": -1}, r"in 0\.\.4, got -1"),
        ({"conv_mode": "x"}, "conv mode"),
    ],
)
def test_bad_settings_are_refused(make: MakeAnswerer, options: dict[str, Any], rule: str) -> None:
    """When the answerer is made, not at the first question."""
    with pytest.raises(BadInput, match=rule):
        make(**options)


def test_a_prompt_over_the_context_is_refused(make: MakeAnswerer) -> None:
    """The question is named, and no forward is run."""
    with pytest.raises(BadInput, match=r"context of 4096 tokens, got .* in question 'long'"):
        make().answer(Question("long", "word " * 5000))


def test_keep_attentions_does_what_the_first_programs_did(checkpoint: Checkpoint) -> None:
    """Eager, no cache, every layer's N x N map and the whole logits of each token; alive until the next is done."""
    model = checkpoint.load_model(placed())
    answerer = Answerer(checkpoint.tokenizer, model, checkpoint.image_processor, max_new_tokens=3, keep_attentions=True)
    plain = Answerer(
        checkpoint.tokenizer, checkpoint.load_model(placed()), checkpoint.image_processor, max_new_tokens=3
    )

    answer = answerer.answer(WITH_IMAGE)
    output, logits = answerer._kept  # type: ignore[misc]
    n = answer.prompt_tokens
    assert answer == plain.answer(WITH_IMAGE)
    assert [tuple(step[3].shape) for step in output.attentions] == [(1, 4, n + k, n + k) for k in range(3)]
    assert [tuple(step.shape) for step in logits] == [(1, n + k, 1024) for k in range(3)]
    assert len(output.scores) == 3
    assert not model._forward_hooks

    first = weakref.ref(output.attentions[0][0])
    del output, logits
    alive: list[bool] = []
    hook = model.register_forward_hook(lambda *_: alive.append(first() is not None))
    answerer.answer(WITH_IMAGE)
    hook.remove()
    gc.collect()
    assert alive == [True] * 3
    assert first() is None


def test_without_keep_attentions_nothing_is_kept(make: MakeAnswerer) -> None:
    """The default holds no output, and leaves attention as it was loaded."""
    answerer = make()
    answerer.answer(WITH_IMAGE)

    assert answerer._kept is None
    assert answerer.model.config.text_config._attn_implementation == "sdpa"
