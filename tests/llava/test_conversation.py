from __future__ import annotations

from typing import Any

import pytest

from llava.conversation import build_prompt, clean_answer, conversation
from llava.errors import BadInput


def test_prompts_are_the_originals(golden: dict[str, Any]) -> None:
    """Every golden prompt comes out to the letter."""
    for case in golden["prompts"]:
        assert build_prompt(case["value"], True, single_pred_prompt=case["single_pred_prompt"]) == case["prompt"]


@pytest.mark.parametrize(
    ("conv_mode", "before", "after"),
    [
        (
            "llava_v1",
            "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
            "detailed, and polite answers to the human's questions. USER: ",
            " ASSISTANT:",
        ),
        ("plain", "", "\n"),
    ],
)
def test_the_family_s_other_modes(conv_mode: str, before: str, after: str) -> None:
    """As the original's `conv_templates` write them."""
    with_image = build_prompt("Which?\nA. a", True, conv_mode=conv_mode)
    without = build_prompt("Which?\nA. a", False, conv_mode=conv_mode, single_pred_prompt=True)

    assert with_image == f"{before}<image>\nWhich?\nA. a{after}"
    assert without == f"{before}Which?\nA. a\nAnswer with the option's letter from the given choices directly.{after}"
    assert clean_answer(" B\n", conv_mode=conv_mode) == "B"


def test_the_placeholder_goes_first_or_away() -> None:
    """The image stands first wherever the text had it; without an image the text's placeholder is just dropped."""
    asked = "Which?\nA. hard\nB. soft"
    with_image = build_prompt(f"<image>\n{asked}", True)

    assert build_prompt(f"{asked}\n<image>", True) == with_image
    assert build_prompt(asked, True) == with_image
    assert f"USER: <image>\n{asked} ASSISTANT:" in with_image
    assert build_prompt(f"{asked}\n<image>", False) == with_image.replace("<image>\n", "")


@pytest.mark.parametrize("text", ["<image><image> a", "<im<image>age> a", "<im<im<image>age>age>\na<image>"])
@pytest.mark.parametrize("has_image", [True, False])
def test_text_cannot_smuggle_in_a_placeholder(text: str, has_image: bool) -> None:
    """One image, one placeholder; no image, none: also where taking one out of the text joins another."""
    prompt = build_prompt(text, has_image)

    assert prompt.count("<image>") == has_image


def test_answers_are_cleaned_as_the_original_does(golden: dict[str, Any]) -> None:
    """Space around an answer and the stop string at its end go; nothing else does."""
    for case in golden["answer_postprocess"]:
        assert clean_answer(case["decoded"]) == case["outputs"]
        assert (clean_answer(case["decoded"]) == "B") is case["equals_label_B"]
    assert clean_answer("</s> is a tag </s>\n") == "</s> is a tag"


def test_an_unknown_mode_is_refused_with_the_known_ones() -> None:
    """The message lists what is known and what came."""
    with pytest.raises(BadInput, match=r"one of vicuna_v1, v1, llava_v1, plain, got 'llama_3'"):
        build_prompt("a", False, conv_mode="llama_3")
    assert conversation("v1") is conversation("vicuna_v1")
    assert conversation("v1").stop == "</s>"
