"""Prompts as LLaVA writes them. Pure text; no tokenizer."""

from __future__ import annotations

from dataclasses import dataclass

from llava.errors import BadInput, shown

IMAGE_TOKEN = "<image>"  # noqa: S105  # a placeholder in text, not a secret
SINGLE_PREDICTION = "\nAnswer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class Conversation:
    """Format of a single turn: the words of the `system`, then what stands around a message. `stop` ends an answer."""

    system: str
    before: str
    after: str
    stop: str

    def prompt(self, message: str) -> str:
        """The whole prompt for the user's `message`, up to the assistant's turn."""
        return f"{self.system}{self.before}{message}{self.after}"


def _v1(person: str) -> Conversation:
    """Version 1 of the original's formats, where the assistant talks to a `person`."""
    system = (
        f"A chat between a curious {person} and an artificial intelligence assistant. "
        f"The assistant gives helpful, detailed, and polite answers to the {person}'s questions."
    )
    return Conversation(system, before=" USER: ", after=" ASSISTANT:", stop="</s>")


_VICUNA_V1 = _v1("user")
CONVERSATIONS = {
    "vicuna_v1": _VICUNA_V1,
    "v1": _VICUNA_V1,
    "llava_v1": _v1("human"),  # LLaVA's first models
    "plain": Conversation(system="", before="", after="\n", stop="\n"),  # a projector in its first stage of training
}


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
