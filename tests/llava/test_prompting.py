from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlavaProcessor, PreTrainedTokenizerFast
from transformers.utils import logging

from llava.builder import Checkpoint
from llava.conversation import build_prompt
from llava.errors import BadInput
from llava.images import Drawing, open_rgb
from llava.prompting import Prompts
from llava.questions import Question, embedded_questions

PICTURE = Drawing((50, 40), "RGB", 0)


@pytest.fixture
def prompts(checkpoint: Checkpoint) -> Prompts:
    return Prompts(checkpoint.tokenizer, checkpoint.config)


def _metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """LLaMA's way: a space is a character, put before the first word only."""
    special = unk, bos, eos, image, pad = "<unk>", "<s>", "</s>", "<image>", "<pad>"
    tokenizer = Tokenizer(models.BPE(unk_token=unk, byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=list(special), show_progress=False)
    tokenizer.train_from_iterator([question.text for question in embedded_questions(20)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=unk, bos_token=bos, eos_token=eos, pad_token=pad,
        extra_special_tokens={"image_token": image},
    )  # fmt: skip


@pytest.mark.parametrize("metaspace", [False, True])
def test_ids_are_those_of_transformers_processor(checkpoint: Checkpoint, metaspace: bool) -> None:
    """For ordinary text, with an image and without, token for token; with LLaMA's treatment of spaces too."""
    tokenizer: Any = _metaspace_tokenizer() if metaspace else checkpoint.tokenizer
    processor = LlavaProcessor(
        checkpoint.image_processor,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    for question in embedded_questions(20):
        image = None if question.image is None else open_rgb(question.image)
        expected = processor(text=build_prompt(question.text, image is not None), images=image)["input_ids"][0]

        assert Prompts(tokenizer, checkpoint.config).ids(question) == expected


@pytest.mark.parametrize("special", ["</s>", "<s>", "<pad>", "<unk>"])
@pytest.mark.parametrize("picture", [None, PICTURE])
def test_text_cannot_inject_special_tokens(
    prompts: Prompts, checkpoint: Checkpoint, special: str, picture: Drawing | None
) -> None:
    """A special token that the question spells stays text: only the begin token and the image's are special."""
    text = f"What does {special}{special} mean?\nA. {special}"

    ids = prompts.ids(Question("1", text, None, picture))

    image_tokens = 0 if picture is None else 64
    assert sorted(i for i in ids if i in checkpoint.tokenizer.all_special_ids) == [1] + [3] * image_tokens
    assert ids[0] == 1
    assert text in checkpoint.tokenizer.decode(ids, skip_special_tokens=True)
    # The next ordinary prompt is not affected.
    assert checkpoint.tokenizer("a</s>").input_ids[-1] == 2


def test_flags_of_the_conversation_reach_the_prompt(checkpoint: Checkpoint, prompts: Prompts) -> None:
    """The single-letter request is part of the prompt; an unknown conversation mode is refused."""
    question = embedded_questions(1)[0]
    asking = Prompts(checkpoint.tokenizer, checkpoint.config, single_pred_prompt=True)

    assert len(asking.ids(question)) > len(prompts.ids(question))
    with pytest.raises(BadInput, match="conv mode"):
        Prompts(checkpoint.tokenizer, checkpoint.config, conv_mode="x").ids(question)


def test_a_prompt_over_the_context_is_refused_by_name(prompts: Prompts, caplog: pytest.LogCaptureFixture) -> None:
    """Exactly the context still passes, one token more does not; transformers adds no warning of its own."""
    logging.add_handler(caplog.handler)
    bare = len(prompts.ids(Question("x", "é")))
    fill = "漢" * ((4096 - bare) // 3)
    rest = 4096 - len(prompts.ids(Question("x", f"é{fill}")))
    assert len(prompts.ids(Question("x", f"é{fill}" + "\x00" * rest))) == 4096

    with pytest.raises(BadInput, match="at most the context of 4096 tokens, got 4097 in question 'long'"):
        prompts.ids(Question("long", f"é{fill}" + "\x00" * (rest + 1)))
    logging.remove_handler(caplog.handler)
    assert caplog.records == []


def test_a_wrong_system_length_is_refused_by_name(prompts: Prompts, tmp_path: Path) -> None:
    """Right, unknown, or without an image: fine. Wrong: what it must be, what came, and for which question."""
    question = Question("q1", "Which?", None, PICTURE)
    start = prompts.ids(question).index(3)

    prompts.check(question, start)
    prompts.check(question, None)
    prompts.check(Question("q2", "Which?"), start + 1)
    with pytest.raises(BadInput, match=f"must be the {start} tokens before the image, got {start + 1} for .*'q1'"):
        prompts.check(question, start + 1)
