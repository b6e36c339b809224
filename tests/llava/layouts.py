"""Checkpoints written by hand: weights in every form, the original LLaVA's layout, and what belongs around it."""

from __future__ import annotations

import io
import json
import pickle
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from safetensors.torch import save_file
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)
from transformers.utils import is_accelerate_available

needs_accelerate = pytest.mark.skipif(not is_accelerate_available(), reason="the package accelerate is not installed")
FORMS = ("safetensors", "sharded safetensors", "bin", "sharded bin", "old bin")
TOKENS = 300  # in the original tokenizer, and rows of the embeddings
SP_TOKENS = 500  # in a tokenizer.model that is trained here
ROWS = 320  # TOKENS + <image> + <pad>, in steps of 64
IMAGE_TOKENS = 16  # (16 / 4) squared
TOWER = "small-clip"
VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
    "projection_dim": 16,
}
DECODER: dict[str, Any] = {
    "vocab_size": TOKENS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "initializer_range": 0.3,  # or every token would be answered much alike
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ORIGINAL: dict[str, Any] = DECODER | {
    "model_type": "llava",
    "architectures": ["LlavaLlamaForCausalLM"],
    "torch_dtype": "float32",
    "pad_token_id": 0,
    "rope_scaling": None,
    "image_aspect_ratio": "pad",
    "mm_hidden_size": 16,
    "mm_projector_type": "mlp2x_gelu",
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": TOWER,
    "use_mm_proj": True,
}


def plain_llava() -> LlavaForConditionalGeneration:
    """transformers' own LLaVA, which knows no more than the original's tokens: the last stands for the image."""
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION), text_config=LlamaConfig(**DECODER), image_token_index=TOKENS - 1
    )
    return LlavaForConditionalGeneration(config).eval()


def original_keys(plain: LlavaForConditionalGeneration) -> dict[str, Tensor]:
    """Its weights, named as in liuhaotian/llava-v1.5-7b."""
    renamed = {}
    for key, tensor in plain.state_dict().items():
        for ours, theirs in (
            ("model.language_model.", "model."),
            ("model.vision_tower.", "model.vision_tower.vision_tower.vision_model."),
            ("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
            ("model.multi_modal_projector.linear_2.", "model.mm_projector.2."),
            ("lm_head.", "lm_head."),
        ):
            if key.startswith(ours):
                renamed[theirs + key.removeprefix(ours)] = tensor.clone()
    assert len(renamed) == len(plain.state_dict())
    # What old versions of transformers saved beside the weights.
    renamed["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
    renamed["model.vision_tower.vision_tower.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    return renamed


def without_tower(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in weights.items() if "vision_tower" not in key}


def write_weights(folder: Path, weights: Mapping[str, Tensor], form: str = "safetensors") -> None:
    """Write `weights` into `folder` in one of FORMS."""
    suffix = "safetensors" if "safetensors" in form else "bin"
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    if not form.startswith("sharded"):
        _write(folder / f"{stem}.{suffix}", weights, old=form == "old bin")
        return
    index: dict[str, str] = {}
    names = list(weights)
    for shard in range(3):
        file = f"{stem}-{shard + 1:05}-of-00003.{suffix}"
        part = {name: weights[name] for name in names[shard::3]}
        _write(folder / file, part, old=False)
        index |= dict.fromkeys(part, file)
    content = {"metadata": {"total_size": 1}, "weight_map": index}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(content))


def _write(file: Path, weights: Mapping[str, Tensor], *, old: bool) -> None:
    if file.suffix == ".safetensors":
        save_file(dict(weights), file, metadata={"format": "pt"})
    else:
        torch.save(dict(weights), file, _use_new_zipfile_serialization=not old)


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def write_tokenizer(folder: Path) -> None:
    """A tokenizer.json of TOKENS tokens, neither <image> nor <pad> among them."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENS,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([f"word{number} of a few more words, and letters" for number in range(99)], trainer)
    assert tokenizer.get_vocab_size() == TOKENS
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    specials = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **specials).save_pretrained(folder)


def sentencepiece_model(words: list[str]) -> bytes:
    """A tokenizer.model in SentencePiece's protocol buffers: LLaMA's specials and bytes, then `words` bit by bit."""

    def number(value: int) -> bytes:
        rest = value >> 7
        return bytes([value & 127 | (128 if rest else 0)]) + (number(rest) if rest else b"")

    def field(index: int, content: bytes | int) -> bytes:
        if isinstance(content, int):
            return number(index << 3) + number(content)
        return number(index << 3 | 2) + number(len(content)) + content

    def piece(text: str, score: float, kind: int) -> bytes:
        return field(1, field(1, text.encode()) + number(2 << 3 | 5) + struct.pack("<f", score) + field(3, kind))

    pieces = [piece("<unk>", 0, 2), piece("<s>", 0, 3), piece("</s>", 0, 3)]
    pieces += [piece(f"<0x{byte:02X}>", 0, 6) for byte in range(256)]
    bits = dict.fromkeys(word[:end] for word in words for end in range(2, len(word) + 1))
    pieces += [piece(text, -rank, 1) for rank, text in enumerate([*bits, *sorted(set("".join(words)))])]
    byte_pairs = field(2, field(3, 2) + field(35, 1))
    as_it_is = field(3, field(1, b"identity") + field(3, 1) + field(4, 0) + field(5, 1))
    return b"".join(pieces) + byte_pairs + as_it_is


def trained_sentencepiece(texts: Iterable[str]) -> bytes:
    """A tokenizer.model of SP_TOKENS tokens as LLaMA's is trained: byte pairs, bytes for the rest, spaces kept."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=SP_TOKENS, model_type="bpe", byte_fallback=True,
        character_coverage=1.0, normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
        allow_whitespace_only_pieces=True, num_threads=1, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


def write_clip(folder: Path, plain: LlavaForConditionalGeneration, form: str = "bin", *, whole: bool = True) -> None:
    """The vision tower as a checkpoint of its own: CLIP with its text half, as OpenAI's, or the half that sees."""
    folder.mkdir(parents=True)
    text = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2}
    clip = CLIPModel(CLIPConfig(vision_config=VISION, text_config=text))
    tower = {
        key.removeprefix("model.vision_tower."): tensor.clone()
        for key, tensor in plain.state_dict().items()
        if key.startswith("model.vision_tower.")
    }
    if whole:
        weights = clip.state_dict() | {f"vision_model.{key}": tensor for key, tensor in tower.items()}
        weights["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
        assert weights.keys() - {"vision_model.embeddings.position_ids"} == clip.state_dict().keys()
        clip.config.save_pretrained(folder)
    else:
        weights = tower
        CLIPVisionConfig(**VISION).save_pretrained(folder)
    write_weights(folder, weights, form)
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)


def write_original(
    folder: Path, plain: LlavaForConditionalGeneration, form: str = "safetensors", *, tower_inside: bool = False
) -> Path:
    """A whole checkpoint in the original layout, its CLIP in a folder of it; returns `folder`."""
    folder.mkdir()
    write_json(folder / "config.json", ORIGINAL)
    write_tokenizer(folder)
    weights = original_keys(plain)
    write_weights(folder, weights if tower_inside else without_tower(weights), form)
    write_clip(folder / TOWER, plain)
    if tower_inside:
        (folder / TOWER / "pytorch_model.bin").unlink()
    return folder


def write_base(folder: Path, plain: LlavaForConditionalGeneration, form: str = "safetensors") -> Path:
    """The LLaMA in it as a checkpoint of its own; returns `folder`."""
    folder.mkdir()
    LlamaConfig(**DECODER).save_pretrained(folder)
    write_tokenizer(folder)
    keys = LlamaForCausalLM(LlamaConfig(**DECODER)).state_dict()
    write_weights(folder, {key: original_keys(plain)[key] for key in keys}, form)
    return folder


def write_projector(folder: Path, plain: LlavaForConditionalGeneration) -> Path:
    """The projector alone, as the first stage of LLaVA's training leaves it; returns `folder`."""
    folder.mkdir()
    write_json(folder / "config.json", ORIGINAL | {"tune_mm_mlp_adapter": True})
    weights = {key: tensor for key, tensor in original_keys(plain).items() if "mm_projector" in key}
    torch.save(weights, folder / "mm_projector.bin")
    write_clip(folder / TOWER, plain)
    return folder


def on_cpu_but(*disk: int) -> dict[str, str]:
    """A device map for a decoder of 4 layers: these of them on the disk, all else on the CPU."""
    decoder = "model.language_model"
    outside = ("model.vision_tower", "model.multi_modal_projector", "lm_head")
    rest = [*outside, *(f"{decoder}.{name}" for name in ("embed_tokens", "norm", "rotary_emb"))]
    layers = {f"{decoder}.layers.{layer}": "disk" if layer in disk else "cpu" for layer in range(4)}
    return dict.fromkeys(rest, "cpu") | layers


class Evil:
    """Unpickled, it writes the file `target`."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.target,)


def plant(file: Path, target: Path, how: str) -> None:
    """Replace `file` by a pickle that touches `target` where it is unpickled; `how` says in which of the formats."""
    if how == "bare":
        file.write_bytes(pickle.dumps({"lm_head.weight": Evil(target)}, protocol=2))
    else:
        torch.save({"lm_head.weight": Evil(target)}, file, _use_new_zipfile_serialization=how == "zip")
