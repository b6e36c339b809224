"""Prompts as token ids, safe from special tokens that a question's text spells: these stay text.

Ids are those of transformers' LlavaProcessor, or, for a checkpoint in the original layout, of the original's
`tokenizer_image_token`. The two differ after the image, where the original tokenises as at the beginning of a text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

from himap import HimapLlavaConfig
from llava.conversation import IMAGE_TOKEN, build_prompt
from llava.errors import BadInput, shown
from llava.model_shape import image_token_count
from llava.questions import Question

_AROUND_IMAGES = "tokenises_around_images"


def tokenise_around_images(tokenizer: Any) -> None:
    """Have `Prompts` tokenise the text before and after an image apart, as the original LLaVA does."""
    setattr(tokenizer, _AROUND_IMAGES, True)


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

    def lengths(self, question: Question) -> dict[str, int]:
        """Tokens of the prompt: `sys` before the image, `img` of it, and `text` after it; all are text without one."""
        is_image = [token == self.config.image_token_id for token in self.ids(question)]
        image_tokens = sum(is_image)
        system = is_image.index(True) if image_tokens else 0
        return {"sys": system, "img": image_tokens, "text": len(is_image) - system - image_tokens}

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
        if getattr(self.tokenizer, _AROUND_IMAGES, False):
            return self._around_images(text)
        text = text.replace(IMAGE_TOKEN, IMAGE_TOKEN * image_token_count(self.config))
        specials = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        if any(token in text for token in specials if token != IMAGE_TOKEN):
            return list(self._without_specials.encode(text).ids)
        return list(self.tokenizer(text, verbose=False).input_ids)

    def _around_images(self, text: str) -> list[int]:
        """Ids of the parts around images. Begin and end tokens are those of every part, the begin token only once."""
        parts = [
            self.tokenizer(part, split_special_tokens=True, verbose=False).input_ids for part in text.split(IMAGE_TOKEN)
        ]
        begins = int(parts[0][:1] == [self.tokenizer.bos_token_id])
        ids = list(parts[0])
        for part in parts[1:]:
            ids += [self.config.image_token_id] * image_token_count(self.config) + part[begins:]
        return ids

    @cached_property
    def _without_specials(self) -> Any:
        """The tokenizer, but of its special tokens it reads the image's only; others in a text are text."""
        # Asked to read special tokens as text, a tokenizer would read "<image>" as text too: there it must be none.
        settings = json.loads(self.tokenizer.backend_tokenizer.to_str())
        for token in settings["added_tokens"]:
            token["special"] &= token["content"] != IMAGE_TOKEN
        tokenizer = Tokenizer.from_str(json.dumps(settings))
        tokenizer.encode_special_tokens = True
        return tokenizer
