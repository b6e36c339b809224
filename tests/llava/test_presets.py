from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlavaForConditionalGeneration

from himap import HimapLlavaForConditionalGeneration
from llava import presets
from llava.answering import Answerer
from llava.builder import Checkpoint, image_token_count, load_pretrained_model
from llava.errors import BadInput
from llava.images import open_rgb
from llava.modes import MODES, set_mode
from llava.prompting import Prompts
from llava.questions import embedded_questions


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache home."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_tiny_is_written_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first call writes it into the cache, the second finds it there; nothing else is left in the cache."""
    folder = presets.preset_folder("tiny")
    assert folder.parent == cache / "himap-vram"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]

    monkeypatch.setattr(presets, "write_tiny", lambda folder: pytest.fail("written again"))
    assert presets.preset_folder("tiny") == folder


def test_tiny_is_the_same_everywhere(tmp_path: Path) -> None:
    """Two writings are equal to the byte, whatever torch's generator holds, and leave the generator alone."""
    for name, seed in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        presets.write_tiny(tmp_path / name)
        assert torch.equal(torch.get_rng_state(), before)

    assert _files(tmp_path / "a") == _files(tmp_path / "b")


def test_another_process_may_be_first(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the folder appears while this process still writes, the other's is used and ours goes."""
    write = presets.write_tiny

    def slow(folder: Path) -> None:
        write(folder)
        other = folder.with_name(folder.name.rpartition(".")[0])
        other.mkdir()
        write(other)
        (other / "theirs").touch()

    monkeypatch.setattr(presets, "write_tiny", slow)
    folder = presets.preset_folder("tiny")

    assert folder.parent == cache / "himap-vram"
    assert (folder / "theirs").exists()
    assert len(list(folder.parent.iterdir())) == 1


def test_an_interrupted_writing_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No half checkpoint for the next run to find."""

    def interrupted(folder: Path) -> None:
        (folder / "config.json").write_text("{")
        raise KeyboardInterrupt

    monkeypatch.setattr(presets, "write_tiny", interrupted)
    with pytest.raises(KeyboardInterrupt):
        presets.preset_folder("tiny")

    assert list((cache / "himap-vram").iterdir()) == []


def test_without_a_cache_a_temporary_folder_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the cache can't be written, tiny still loads."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    presets._temporary_tiny.cache_clear()

    folder = presets.preset_folder("tiny")

    assert tmp_path not in folder.parents
    assert folder == presets.preset_folder("tiny")
    assert "model.safetensors" in _files(folder)


def test_a_relative_cache_home_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As the XDG rule says: a relative path there is ignored."""
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    monkeypatch.setenv("HOME", str(tmp_path))

    assert presets.preset_folder("tiny").parent == tmp_path / ".cache" / "himap-vram"


def test_only_known_presets() -> None:
    """A preset that is not there yet is refused with those that are."""
    with pytest.raises(BadInput, match="must be one of tiny, got '7b'"):
        presets.preset_folder("7b")


def test_plain_transformers_loads_tiny(checkpoint: Checkpoint, model: HimapLlavaForConditionalGeneration) -> None:
    """It is a genuine LLaVA: transformers' own class reads every key and gives our baseline's logits bit for bit."""
    plain, info = LlavaForConditionalGeneration.from_pretrained(checkpoint.folder, output_loading_info=True)
    assert not any(info.values())
    question = embedded_questions(1)[0]
    assert question.image is not None
    inputs = {
        "input_ids": torch.tensor([Prompts(checkpoint.tokenizer, checkpoint.config).ids(question)]),
        "pixel_values": checkpoint.image_processor(open_rgb(question.image), return_tensors="pt")["pixel_values"],
    }

    with torch.inference_mode():
        assert torch.equal(plain.eval()(**inputs).logits, model(**inputs).logits)


def test_tiny_has_the_shape_promised(checkpoint: Checkpoint) -> None:
    """At least 64 image tokens, 4 layers and a context of 2048 tokens; weights in safetensors only."""
    assert image_token_count(checkpoint.config) == 64
    assert checkpoint.config.image_seq_length == 64
    assert checkpoint.config.text_config.num_hidden_layers == 4
    assert checkpoint.context_len >= 2048
    assert checkpoint.config.architectures == ["LlavaForConditionalGeneration"]
    assert {path.suffix for path in checkpoint.folder.iterdir()} == {".json", ".safetensors"}
    assert len(load_file(checkpoint.folder / "model.safetensors")) > 50


@pytest.mark.parametrize(
    "text", ["", "  two  spaces\n\n", "Ünïcödé — 漢字 🙂 \u200b\u0301", "\0\x7f\t\r\n", "don't , stop ."]
)
def test_any_text_comes_back(checkpoint: Checkpoint, text: str) -> None:
    """The tokenizer loses nothing, and starts every prompt with the begin token."""
    ids = AutoTokenizer.from_pretrained(checkpoint.folder)(text).input_ids

    assert ids[0] == 1
    assert 0 not in ids
    assert checkpoint.tokenizer.decode(ids, skip_special_tokens=True) == text


def test_answers_depend_on_question_picture_and_mode(
    checkpoint: Checkpoint, model: HimapLlavaForConditionalGeneration
) -> None:
    """Random weights, but not a constant: another question, another picture or another mode is another answer."""
    answerer = Answerer(checkpoint.tokenizer, model, checkpoint.image_processor, max_new_tokens=8)
    first, second = embedded_questions(2)
    texts = {answerer.answer(first).text, answerer.answer(second).text}
    texts.add(answerer.answer(type(first)(first.id, first.text, image=second.image)).text)
    for mode in MODES[1:]:
        set_mode(model, mode)
        texts.add(answerer.answer(first).text)

    assert len(texts) == 3 + len(MODES[1:])


def test_load_pretrained_model_gives_the_original_four(checkpoint: Checkpoint) -> None:
    """Tokenizer, model in eval mode without gradients, image processor, context length."""
    tokenizer, model, image_processor, context_len = load_pretrained_model("tiny", None, "llava-tiny")

    assert len(tokenizer) == len(checkpoint.tokenizer)
    assert isinstance(model, HimapLlavaForConditionalGeneration)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert image_processor.crop_size["height"] == 112
    assert context_len == 4096
