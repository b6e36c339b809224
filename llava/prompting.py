"""Prompts as token ids: those of transformers' LlavaProcessor, but safe from special tokens in a question's text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from himap import HimapLlavaConfig
from llava.conversation import IMAGE_TOKEN, build_prompt
from llava.errors import BadInput, shown
from llava.model_shape import image_token_count
from llava.questions import Question


@dataclass(frozen=True)
class Prompts:
    """Writes prompts for one checkpoint. Needs no weights."""

    tokenizer: Any
    config: HimapLlavaConfig
    conv_mode: str = "vicuna_v1"
    single_pred_prompt: bool = False

    def ids(self, question: Question) -> list[int]:
        """Token ids of the prompt: begin token, text, and one image token for every token of the image.

        Raises BadInput, naming the question, where they are more than the model's context.
        """
        text = build_prompt(
            question.text,
            question.image is not None,
            conv_mode=self.conv_mode,
            single_pred_prompt=self.single_pred_prompt,
        )
        ids = self._tokenise(text)
        longest = self.config.text_config.max_position_embeddings
        if len(ids) > longest:
            raise BadInput(
                f"a prompt must be at most the context of {longest} tokens, got {len(ids)} in question "
                f"{shown(question.id)}"
            )
        return ids

    def check(self, question: Question, system_length: int | None = None) -> None:
        """Raise BadInput, naming the question, if its prompt can't be answered.

        It is too long, or its image does not stand after exactly `system_length` tokens (None: anywhere).
        """
        ids = self.ids(question)
        if system_length is None or question.image is None:
            return
        start = ids.index(self.config.image_token_id)
        if start != system_length:
            raise BadInput(
                f"the system length must be the {start} tokens before the image, got {system_length} for question "
                f"{shown(question.id)}"
            )

    def _tokenise(self, text: str) -> list[int]:
        image_tokens = image_token_count(self.config)
        written = text.split(IMAGE_TOKEN)
        if not any(token in part for part in written for token in self.tokenizer.all_special_tokens):
            return list(self.tokenizer(text.replace(IMAGE_TOKEN, IMAGE_TOKEN * image_tokens), verbose=False).input_ids)
        # The question spells a special token, "</s>" say: it must stay text. Asked for that, the tokenizer would also
        # read "<image>" as text, so that the parts around it go in one by one.
        ids: list[int] = []
        for index, part in enumerate(written):
            ids += [self.config.image_token_id] * (image_tokens if index else 0)
            ids += self.tokenizer(
                part, add_special_tokens=index == 0, split_special_tokens=True, verbose=False
            ).input_ids
        return ids
