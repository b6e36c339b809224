from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, LlavaForConditionalGeneration

import vram
from himap import HimapLlavaForConditionalGeneration
from llava import placement, presets
from llava.answering import Answerer
from llava.builder import Checkpoint, load_pretrained_model, open_checkpoint
from llava.checkpoint import empty_model
from llava.errors import BadInput
from llava.images import open_rgb
from llava.model_shape import image_token_count
from llava.modes import MODES, set_mode
from llava.placement import placed
from llava.prompting import Prompts
from llava.questions import embedded_questions
from llava.shapes import Shape, Transformer

SMALL = Shape(Transformer(64, 96, 4, 4), Transformer(32, 48, 3, 4), image_size=56, patch_size=14, vocab_size=1200)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache home."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_tiny_is_written_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first call writes it into the cache, the second finds it there; nothing else is left in the cache."""
    folder = presets.tiny_folder()
    assert folder.parent == cache / "himap-vram"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]

    monkeypatch.setattr(presets, "write_tiny", lambda folder: pytest.fail("written again"))
    assert presets.tiny_folder() == folder


@pytest.mark.parametrize("module", [presets.shapes, presets.sample_questions, presets.conversation, presets.multimodal])
def test_tiny_is_written_anew_when_it_would_differ(
    cache: Path, module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shapes, texts and the names of keys all decide what is written: another version of them has another folder."""
    before = presets.tiny_folder()
    other = tmp_path / "other.py"
    other.write_text("another version")
    monkeypatch.setattr(module, "__file__", str(other))

    assert presets.tiny_folder() != before


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
    folder = presets.tiny_folder()

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
        presets.tiny_folder()

    assert list((cache / "himap-vram").iterdir()) == []


def test_without_a_cache_a_temporary_folder_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the cache can't be written, tiny still loads."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    presets._temporary_tiny.cache_clear()

    folder = presets.tiny_folder()

    assert tmp_path not in folder.parents
    assert folder == presets.tiny_folder()
    assert "model.safetensors" in _files(folder)


def test_a_relative_cache_home_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As the XDG rule says: a relative path there is ignored."""
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    monkeypatch.setenv("HOME", str(tmp_path))

    assert presets.tiny_folder().parent == tmp_path / ".cache" / "himap-vram"


def test_only_known_presets() -> None:
    """A preset that is not there is refused with those that are."""
    with pytest.raises(BadInput, match="must be one of tiny, 7b, 13b, got '8b'"):
        presets.open_preset("8b")


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
    for mode in list(MODES)[1:]:
        set_mode(model, mode)
        texts.add(answerer.answer(first).text)

    assert len(texts) == 3 + len(list(MODES)[1:])


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


def _parameters(decoder: int, inner: int, layers: int) -> int:
    """LLaVA-1.5's parameters, counted from its papers: CLIP ViT-L/14-336, two projections, a LLaMA without biases."""
    see, patch, seen = 1024, 14, (336 // 14) ** 2 + 1
    attention = 4 * (see * see + see)
    mlp = see * 4096 + 4096 + 4096 * see + see
    norm = 2 * see
    tower = see + 3 * patch**2 * see + seen * see + 24 * (attention + mlp + 2 * norm) + 2 * norm
    projector = see * decoder + decoder + decoder * decoder + decoder
    layer = 4 * decoder * decoder + 3 * decoder * inner + 2 * decoder
    return tower + projector + 2 * 32064 * decoder + layers * layer + decoder


@pytest.mark.parametrize(
    ("name", "sizes", "heads", "parameters"),
    [
        ("7b", (4096, 11008, 32), 32, 14_126_854_144 // 2),  # measured: the bytes of LLaVA-1.5-7B in float16
        ("13b", (5120, 13824, 40), 40, 13_351_494_656),
    ],
)
def test_real_shapes(name: str, sizes: tuple[int, int, int], heads: int, parameters: int) -> None:
    """7b and 13b have LLaVA-1.5's parameters to the last one, its layers, its 576 image tokens and its context."""
    checkpoint = open_checkpoint(name)
    text, vision = checkpoint.config.text_config, checkpoint.config.vision_config

    model = empty_model(checkpoint.config, torch.device("meta"), dtype=torch.float16)

    assert sum(parameter.numel() for parameter in model.parameters()) == _parameters(*sizes) == parameters
    assert (text.hidden_size, text.intermediate_size, text.num_hidden_layers) == sizes
    assert text.num_attention_heads == text.num_key_value_heads == heads
    assert (vision.num_attention_heads, vision.image_size, vision.patch_size) == (16, 336, 14)
    assert (checkpoint.config.vision_feature_layer, checkpoint.config.image_seq_length) == (-2, 576)
    assert image_token_count(checkpoint.config) == 576
    assert checkpoint.context_len == 4096
    assert text.vocab_size == 32064


@pytest.mark.parametrize("name", ["7b", "13b"])
def test_prompts_for_real_shapes(name: str, cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Questions become 576 image tokens, 336 x 336 pixels, and ids below the vocabulary; nothing is on disk."""
    checkpoint = open_checkpoint(name)
    ids = Prompts(checkpoint.tokenizer, checkpoint.config).ids(embedded_questions(1)[0])
    question = embedded_questions(1)[0]
    assert question.image is not None

    assert ids.count(checkpoint.config.image_token_id) == 576
    assert max(ids) < len(checkpoint.tokenizer) <= checkpoint.config.text_config.vocab_size
    pixels = checkpoint.image_processor(open_rgb(question.image), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 336, 336)
    assert checkpoint.folder is None
    assert not cache.exists()
    assert capfd.readouterr() == ("", "")


def _small() -> Checkpoint:
    return presets.random_checkpoint("small", SMALL)


def _logits(checkpoint: Checkpoint, model: HimapLlavaForConditionalGeneration) -> Tensor:
    answerer = Answerer(checkpoint.tokenizer, model, checkpoint.image_processor)
    with torch.inference_mode():
        logits = model(**answerer.inputs(embedded_questions(1)[0]), use_cache=False).logits
    assert isinstance(logits, Tensor)
    return logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_random_weights_are_the_same_each_time(dtype: torch.dtype) -> None:
    """Two models are equal bit for bit, whatever torch's generator holds, which is left alone."""
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        model = _small().load_model(placed(dtype=dtype))
        assert torch.equal(torch.get_rng_state(), before)
        states.append(model.state_dict())

    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert {value.dtype for value in states[0].values()} == {dtype}


def test_an_empty_model_is_not_drawn() -> None:
    """Weights are set once: making the model draws nothing but the one tensor that CLIP draws by itself."""
    empty_model(_small().config, torch.device("cpu"))
    after = torch.get_rng_state()
    torch.manual_seed(0)  # as every test starts
    torch.randn(SMALL.tower.hidden_size)

    assert torch.equal(torch.get_rng_state(), after)


def test_random_weights_are_all_set() -> None:
    """Biases 0, norms 1, all else drawn: no two tensors alike, with LLaMA's standard deviation of 0.02."""
    model = _small().load_model(placed(dtype=torch.float32))
    assert not model.training
    drawn = []
    for name, parameter in model.named_parameters():
        assert not parameter.requires_grad
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert bool((parameter == 1).all()), name
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.35), name
            drawn.append(parameter.flatten()[:8].tolist())
    assert len({tuple(values) for values in drawn}) == len(drawn) == 4 * 7 + 3 * 6 + 2 + 3 + 2


@pytest.mark.parametrize("mode", MODES)
def test_a_random_model_answers_in_half_precision(mode: str) -> None:
    """Logits are finite, differ from token to token, and change with the picture."""
    checkpoint = _small()
    model = checkpoint.load_model(placed(dtype="float16"))
    set_mode(model, mode)

    logits = _logits(checkpoint, model)

    assert bool(logits.isfinite().all())
    assert logits.std() > 1e-3
    answerer = Answerer(checkpoint.tokenizer, model, checkpoint.image_processor, max_new_tokens=3, min_new_tokens=3)
    assert answerer.answer(embedded_questions(1)[0]).tokens == 3


def test_making_a_model_takes_its_own_weights_bytes() -> None:
    """No copy in float32, none of the decoder: the peak while it is made is the model's size and little more."""
    shape = Shape(Transformer(512, 1024, 4, 4), Transformer(32, 48, 2, 4), 56, 14, vocab_size=8192)
    checkpoint = presets.random_checkpoint("small", shape)

    with vram.measure("cpu") as memory:
        model = checkpoint.load_model(placed(dtype="float16"))

    own = sum(parameter.numel() * parameter.itemsize for parameter in model.parameters())
    assert own > 30e6
    assert own <= memory.peak_bytes - memory.before_bytes < own * 1.01


def test_round_trip_of_a_random_model(tmp_path: Path) -> None:
    """Saved with its tokenizer and image processor it is a checkpoint like any other, with the same logits."""
    checkpoint = _small()
    model = checkpoint.load_model(placed())
    for part in (model, checkpoint.tokenizer, checkpoint.image_processor):
        part.save_pretrained(tmp_path / "saved")
    expected = _logits(checkpoint, model)

    again = open_checkpoint(tmp_path / "saved")
    plain = LlavaForConditionalGeneration.from_pretrained(tmp_path / "saved").eval()

    assert torch.equal(_logits(again, again.load_model(placed())), expected)
    answerer = Answerer(checkpoint.tokenizer, model, checkpoint.image_processor)
    with torch.inference_mode():
        assert torch.equal(plain(**answerer.inputs(embedded_questions(1)[0])).logits, expected)


def test_a_random_model_is_made_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device map needs a checkpoint on disk."""
    monkeypatch.setattr(placement, "is_accelerate_available", lambda: True)
    with pytest.raises(BadInput, match="are for checkpoints on disk, got the preset 'small'"):
        _small().load_model(placed(device_map="auto"))


def test_auto_is_float16_for_a_random_model() -> None:
    """The checkpoint's own dtype is that of LLaVA-1.5's."""
    assert _small().load_model(placed(dtype="auto")).dtype == torch.float16
