"""Answering questions: greedy, and nothing is kept from one answer to the next."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from himap import HimapLlavaForConditionalGeneration
from llava.conversation import clean_answer, conversation
from llava.errors import BadInput
from llava.images import open_rgb, padded_to_square
from llava.prompting import Prompts
from llava.questions import Question
from vram import mark


@dataclass(frozen=True)
class Answer:
    """`text` as compared with the label; `tokens` generated, the end token included; `prompt_tokens` read.

    `seconds` were spent in `generate`, the device's work included, `prefill_seconds` of them until the prompt's logits
    were there; None where that was not measured.
    """

    text: str
    tokens: int
    prompt_tokens: int
    seconds: float = field(compare=False)
    prefill_seconds: float | None = field(default=None, compare=False)


class _AtEachToken(LogitsProcessor):  # type: ignore[misc]
    """Takes a memory reading at every generated token, and forbids the image token.

    `prefill_seconds` from its making to the first token; None before.
    """

    def __init__(self, image_token_id: int) -> None:
        self._image_token_id = image_token_id
        self.prefill_seconds: float | None = None
        self._made_at = time.monotonic()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.prefill_seconds is None:
            if scores.is_cuda:
                torch.cuda.synchronize(scores.device)
            self.prefill_seconds = time.monotonic() - self._made_at
        mark("token")
        # Random weights do choose it, and without a cache the next forward would look for its image.
        scores[:, self._image_token_id] = float("-inf")
        return scores


class Answerer:
    """Answers questions with a loaded model, in whatever mode the model is set to at that moment.

    `use_cache=False` computes the whole prompt anew at every token, HiMAP's choice included, as the original does.
    `pad_images` pads an image to a square instead of cropping its middle (CLIP's way, and the original HiMAP's).
    `keep_attentions` does as the first version of these programs did, to show the cost: eager attention (set on the
    model, for good), no cache, every layer's attention map and every step's whole logits kept until the next question
    is answered.

    Attributes: `tokenizer`, `model`, `image_processor`, `prompts`, and `lengths`, the limits on an answer in tokens.
    """

    def __init__(
        self,
        tokenizer: Any,
        model: HimapLlavaForConditionalGeneration,
        image_processor: Any,
        *,
        conv_mode: str = "vicuna_v1",
        single_pred_prompt: bool = False,
        max_new_tokens: int = 1024,
        min_new_tokens: int | None = None,
        use_cache: bool = True,
        keep_attentions: bool = False,
        pad_images: bool = False,
    ) -> None:
        conversation(conv_mode)
        if max_new_tokens < 1:
            raise BadInput(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        if min_new_tokens is not None and not 0 <= min_new_tokens <= max_new_tokens:
            raise BadInput(f"min_new_tokens must be in 0..{max_new_tokens}, got {min_new_tokens}")
        self.tokenizer, self.model, self.image_processor = tokenizer, model, image_processor
        self.prompts = Prompts(tokenizer, model.config, conv_mode, single_pred_prompt)
        self._conv_mode = conv_mode
        self.lengths: dict[str, Any] = {"max_new_tokens": max_new_tokens, "min_new_tokens": min_new_tokens}
        self._use_cache, self._keep_attentions, self._pad_images = use_cache, keep_attentions, pad_images
        self._kept: tuple[Any, list[Tensor]] | None = None
        self._each_token = _AtEachToken(model.config.image_token_id)  # of the answer at work
        if keep_attentions:
            model.set_attn_implementation("eager")

    @torch.inference_mode()
    def answer(self, question: Question) -> Answer:
        """The model's answer. Raises BadInput for a prompt longer than the context and for an unreadable image."""
        inputs = self.inputs(question)
        prompt_tokens = inputs["input_ids"].shape[1]
        started = time.perf_counter()
        self._each_token = _AtEachToken(self.model.config.image_token_id)
        generated = self._generate(inputs)[0, prompt_tokens:].tolist()  # waits for the device
        seconds = time.perf_counter() - started
        decoded = self.tokenizer.decode(generated, skip_special_tokens=True)
        text = clean_answer(decoded, conv_mode=self._conv_mode)
        return Answer(text, len(generated), prompt_tokens, seconds, self._each_token.prefill_seconds)

    def inputs(self, question: Question) -> dict[str, Any]:
        """The model's inputs: input_ids and attention_mask (1, tokens), pixel_values (1, 3, side, side)."""
        inputs: dict[str, Any] = {"input_ids": torch.tensor([self.prompts.ids(question)], device=self.model.device)}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if question.image is not None:
            inputs["pixel_values"] = self._pixels(question)
        return inputs

    def _pixels(self, question: Question) -> Tensor:
        """Float pixel values (1, 3, side, side)."""
        assert question.image is not None
        image = open_rgb(question.image)
        if self._pad_images:
            image = padded_to_square(image, self.image_processor.image_mean)
        pixels = self.image_processor(image, return_tensors="pt")["pixel_values"]
        assert isinstance(pixels, Tensor)
        return pixels.to(self.model.device, self.model.dtype)

    def _generate(self, inputs: dict[str, Any]) -> Tensor:
        """Token ids (1, prompt + generated)."""
        options: dict[str, Any] = {
            "do_sample": False,
            "logits_processor": LogitsProcessorList([self._each_token]),
            **self.lengths,
        }
        if self._keep_attentions:
            # Only now is the previous question's output freed: in the old loop one variable was overwritten.
            self._kept = generate_and_keep(self.model, inputs, options)
            ids = self._kept[0].sequences
        else:
            ids = self.model.generate(**inputs, **options, use_cache=self._use_cache)
        assert isinstance(ids, Tensor)
        return ids


def generate_and_keep(
    model: HimapLlavaForConditionalGeneration, inputs: dict[str, Any], options: dict[str, Any]
) -> tuple[Any, list[Tensor]]:
    """Generate without a cache and keep everything, as the first version of these programs did.

    Returns transformers' output, with every layer's attention of every step, and the whole logits (1, prompt + tokens
    so far, vocabulary) of every step.
    """
    logits: list[Tensor] = []
    hook = model.register_forward_hook(lambda _module, _inputs, output: logits.append(output.logits))
    keep = {"output_attentions": True, "output_scores": True, "return_dict_in_generate": True, "logits_to_keep": 0}
    try:
        output = model.generate(**inputs, **options, **keep, use_cache=False)
    finally:
        hook.remove()
    return output, logits
