"""Prompts as LLaVA writes them. Pure text; no tokenizer."""

from __future__ import annotations

from dataclasses import dataclass

from llava.errors import BadInput, shown

IMAGE_TOKEN = "<image>"  # noqa: S105  # a placeholder in text, not a secret
SINGLE_PREDICTION = "\nAnswer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class Conversation:
    """Format of a single turn. `stop` ends an answer."""

    system: str
    user: str
    assistant: str
    stop: str

    def prompt(self, message: str) -> str:
        """The whole prompt for the user's `message`, up to the assistant's turn."""
        return f"{self.system} {self.user}: {message} {self.assistant}:"


_VICUNA_V1 = Conversation(
    system=(
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    ),
    user="USER",
    assistant="ASSISTANT",
    stop="</s>",
)
CONVERSATIONS = {"vicuna_v1": _VICUNA_V1, "v1": _VICUNA_V1}


def conversation(conv_mode: str) -> Conversation:
    """The conversation mode of that name. Raises BadInput, listing the known ones."""
    if conv_mode not in CONVERSATIONS:
        raise BadInput(f"conv mode must be one of {', '.join(CONVERSATIONS)}, got {shown(conv_mode)}")
    return CONVERSATIONS[conv_mode]


def build_prompt(
    question_text: str, has_image: bool, *, conv_mode: str = "vicuna_v1", single_pred_prompt: bool = False
) -> str:
    """The prompt for one question; with an image, exactly one `<image>` stands first in the user's turn.

    `<image>` is taken out of the text wherever it stands. `single_pred_prompt` asks for the option's letter only.
    Raises BadInput for an unknown `conv_mode`.
    """
    text = question_text
    while IMAGE_TOKEN in text:  # taking one out can join the halves of another
        text = text.replace(IMAGE_TOKEN, "")
    message = f"{IMAGE_TOKEN}\n" * has_image + text.strip() + SINGLE_PREDICTION * single_pred_prompt
    return conversation(conv_mode).prompt(message)


def clean_answer(decoded: str, *, conv_mode: str = "vicuna_v1") -> str:
    """The answer in decoded text: without surrounding space and without the stop string at its end."""
    return decoded.strip().removesuffix(conversation(conv_mode).stop).strip()
