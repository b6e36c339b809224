"""The tokens around an image. Reference of the original layout: sentencepiece itself, text around the image apart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import CLIPImageProcessorPil, LlamaTokenizer, LlavaProcessor

from llava.conversation import CONVERSATIONS, build_prompt
from llava.images import Drawing
from llava.original import original_config, original_tokenizer
from llava.prompting import Prompts
from llava.questions import Question, embedded_questions

from .layouts import IMAGE_TOKENS, ORIGINAL, SP_TOKENS, TOWER, plain_llava, trained_sentencepiece, write_clip

sentencepiece = pytest.importorskip("sentencepiece")
pytest.importorskip("google.protobuf")

PICTURE = Drawing((50, 40), "RGB", 0)
SPECIAL = Question("special", "What does </s> or <s> mean?\nA. é漢\nB. <pad>", None, PICTURE)
QUESTIONS = [*embedded_questions(20), SPECIAL, Question("text", "  two  spaces </s>")]
BEGIN = {"__type": "AddedToken", "content": "<s>", "lstrip": False, "normalized": True, "rstrip": False}
# As published, older, newer, and written by hand.
CONFIGS: list[dict[str, Any] | None] = [
    None,
    {},
    {"legacy": False, "tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False},
    {"legacy": True, "tokenizer_class": "LlamaTokenizer", "bos_token": BEGIN, "pad_token": "<unk>"},
    {"legacy": None, "use_fast": True, "tokenizer_class": "LlamaTokenizerFast"},
    {"add_prefix_space": False},
    {"add_prefix_space": None, "legacy": False, "split_special_tokens": True, "use_default_system_prompt": True},
    {"add_bos_token": False},
    {"add_bos_token": None, "add_eos_token": True, "legacy": False},
    {"add_eos_token": True, "model_max_length": 8, "clean_up_tokenization_spaces": True, "padding_side": "right"},
]


@pytest.fixture(scope="session")
def model() -> bytes:
    """A tokenizer.model."""
    return trained_sentencepiece(build_prompt(question.text, False) for question in embedded_questions(20))


@pytest.fixture(scope="session")
def folder(model: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the original layout, without weights; each test writes the tokenizer's config."""
    folder = tmp_path_factory.mktemp("layouts") / "original"
    write_clip(folder / TOWER, plain_llava())
    (folder / "tokenizer.model").write_bytes(model)
    return folder


def _original(folder: Path, settings: dict[str, Any] | None) -> Prompts:
    raw = ORIGINAL | {"vocab_size": SP_TOKENS, "max_position_embeddings": 4096}
    file = folder / "tokenizer_config.json"
    file.unlink(missing_ok=True)
    if settings is not None:
        file.write_text(json.dumps(settings))
    return Prompts(original_tokenizer(folder, raw), original_config(folder, raw))


def _expected(
    model: bytes, settings: dict[str, Any], question: Question, image: int, conv_mode: str = "vicuna_v1"
) -> list[int]:
    """Ids of the original's tokenizer_image_token: each part with its begin and end token, the begin token once."""
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    begin, end = [1] * bool(settings.get("add_bos_token", True)), [2] * bool(settings.get("add_eos_token", False))
    before, *after = build_prompt(question.text, question.image is not None, conv_mode=conv_mode).split("<image>")
    ids = [*begin, *pieces.encode(before), *end]
    for part in after:
        ids += [image] * IMAGE_TOKENS + pieces.encode(part) + end
    return ids


@pytest.mark.parametrize("settings", CONFIGS, ids=json.dumps)
def test_the_originals_ids(folder: Path, model: bytes, settings: dict[str, Any] | None) -> None:
    """However the tokenizer's config is written: the text after the image begins as a text does, with a space."""
    prompts = _original(folder, settings)

    for question in QUESTIONS:
        ids = prompts.ids(question)
        assert ids == _expected(model, settings or {}, question, prompts.config.image_token_id)
    space, newline = prompts.tokenizer.convert_tokens_to_ids(["▁", "\n"])
    image, ids = prompts.config.image_token_id, prompts.ids(SPECIAL)
    neighbours = [token for token in ids[ids.index(image) - 2 :] if token != image][:4]
    assert neighbours[0 if (settings or {}).get("add_eos_token") else 1] == space
    assert neighbours[2:] == [space, newline]


@pytest.mark.parametrize("conv_mode", CONVERSATIONS)
def test_the_originals_ids_in_every_conv_mode(folder: Path, model: bytes, conv_mode: str) -> None:
    """The prompt may begin with the image, and may end with a newline."""
    prompts = replace(_original(folder, {}), conv_mode=conv_mode)

    for question in QUESTIONS:
        assert prompts.ids(question) == _expected(model, {}, question, prompts.config.image_token_id, conv_mode)


def test_the_model_file_goes_before_the_json(folder: Path, model: bytes) -> None:
    """With tokenizer.json beside tokenizer.model, which the original alone reads: the same ids."""
    _original(folder, None).tokenizer.save_pretrained(folder.parent / "saved")
    json_file = folder / "tokenizer.json"
    content = json.loads((folder.parent / "saved" / "tokenizer.json").read_text())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < SP_TOKENS]
    content["pre_tokenizer"]["prepend_scheme"] = "never"
    json_file.write_text(json.dumps(content))
    try:
        prompts = _original(folder, {"tokenizer_class": "PreTrainedTokenizerFast"})

        assert prompts.ids(SPECIAL) == _expected(model, {}, SPECIAL, prompts.config.image_token_id)
    finally:
        json_file.unlink()


@pytest.mark.parametrize("legacy", [False, True])
def test_the_processors_ids(folder: Path, tmp_path: Path, legacy: bool) -> None:
    """Hugging Face's layout, with the same model: as transformers' processor, which adds a space only if `legacy`.

    A question that spells special tokens has the same neighbours, and its special tokens stay text.
    """
    (tmp_path / "tokenizer.model").write_bytes((folder / "tokenizer.model").read_bytes())
    tokenizer = LlamaTokenizer.from_pretrained(tmp_path, legacy=legacy, add_bos_token=True)
    tokenizer.add_tokens(["<image>", "<pad>"], special_tokens=True)  # "<pad>" is special, but no named token
    tokenizer.pad_token, tokenizer.image_token = "</s>", "<image>"
    image = tokenizer.convert_tokens_to_ids("<image>")
    config = original_config(folder, ORIGINAL | {"vocab_size": SP_TOKENS, "max_position_embeddings": 4096})
    assert config.image_token_id == image
    prompts = Prompts(tokenizer, config)
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}), tokenizer,
        patch_size=4, vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip

    def reference(question: Question) -> list[int]:
        picture = PICTURE.draw() if question.image else None
        ids = processor(text=build_prompt(question.text, picture is not None), images=picture)["input_ids"][0]
        assert isinstance(ids, list)
        return ids

    for question in embedded_questions(20):
        assert prompts.ids(question) == reference(question)
    plain, special = reference(Question("plain", "What does", None, PICTURE)), prompts.ids(SPECIAL)
    alike = plain.index(image) + IMAGE_TOKENS + 3
    assert special[:alike] == plain[:alike]
    assert (tokenizer.convert_ids_to_tokens(special[special.index(image) + IMAGE_TOKENS]) == "▁") is legacy
    added = [token for token in special if token in tokenizer.added_tokens_decoder]
    assert added == [1] + [image] * IMAGE_TOKENS
    assert SPECIAL.text in tokenizer.decode(special, skip_special_tokens=True)
    assert tokenizer.convert_tokens_to_ids("<pad>") not in prompts.ids(Question("pad", "Is it <pad>?", None, PICTURE))
