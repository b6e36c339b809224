"""Preset checkpoints. `tiny`: a whole LLaVA with random weights, written once and then loaded like any other."""

from __future__ import annotations

import atexit
import functools
import hashlib
import os
import shutil
import tempfile
from pathlib import Path

import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, LlamaConfig, PreTrainedTokenizerFast

from himap import HimapLlavaConfig, HimapLlavaForConditionalGeneration
from llava import conversation, embedded
from llava.conversation import CONVERSATIONS, IMAGE_TOKEN
from llava.errors import BadInput, shown
from llava.quiet import quiet

PRESETS = ("tiny",)
_IMAGE_SIZE, _PATCH_SIZE = 112, 14  # pixels; 8 x 8 = 64 image tokens
_CONTEXT = 4096  # tokens, as LLaVA-1.5
_SPECIAL = ("<unk>", "<s>", "</s>", IMAGE_TOKEN, "<pad>")  # ids 0, 1, ...
_VOCABULARY = 1024  # at most


def preset_folder(name: str) -> Path:
    """The folder of preset `name`, written into the user's cache if it is not there yet.

    Two processes at once, or one that is killed, leave no half checkpoint. Where the cache can't be written, a
    temporary folder of this process is used. Raises BadInput for an unknown preset.
    """
    if name not in PRESETS:
        raise BadInput(f"a preset must be one of {', '.join(PRESETS)}, got {shown(name)}")
    try:
        folder = _cache_home() / "himap-vram" / f"tiny-{_digest()}"
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            _write_whole(folder)
    except (OSError, RuntimeError):  # Path.home raises RuntimeError where there is none
        return _temporary_tiny()
    return folder


def _cache_home() -> Path:
    configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return configured if configured.is_absolute() else Path.home() / ".cache"


def _digest() -> str:
    """What defines the checkpoint: the code and the texts it is made from, and the libraries that write it."""
    parts = [Path(file).read_bytes() for file in (__file__, embedded.__file__, conversation.__file__)]
    parts += [module.__version__.encode() for module in (tokenizers, torch, transformers)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _write_whole(folder: Path) -> None:
    """Write `folder` under another name beside it, then rename it: it is there whole or not at all."""
    unfinished = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        write_tiny(unfinished)
        unfinished.chmod(0o755)
        unfinished.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was first, with the same bytes
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@functools.cache
def _temporary_tiny() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="himap-vram-tiny-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_tiny(folder)
    return folder


def write_tiny(folder: Path) -> None:
    """Write the checkpoint into `folder`: config, safetensors, tokenizer, image processor. Always the same."""
    tokenizer = _tokenizer()
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"shortest_edge": _IMAGE_SIZE}, crop_size={"height": _IMAGE_SIZE, "width": _IMAGE_SIZE}
    ).save_pretrained(folder)
    config = _config(vocab_size=len(tokenizer))
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(0)
        model = HimapLlavaForConditionalGeneration(config)
    with quiet():
        model.save_pretrained(folder)
    config.architectures = ["LlavaForConditionalGeneration"]  # the class anyone has
    config.save_pretrained(folder)


def _config(vocab_size: int) -> HimapLlavaConfig:
    ids = {token: index for index, token in enumerate(_SPECIAL)}
    return HimapLlavaConfig(
        vision_config=CLIPVisionConfig(
            image_size=_IMAGE_SIZE,
            patch_size=_PATCH_SIZE,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            projection_dim=64,
        ),
        text_config=LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=_CONTEXT,
            bos_token_id=ids["<s>"],
            eos_token_id=ids["</s>"],
            pad_token_id=ids["<pad>"],
            # Far above a real model's 0.02: without training, it is what makes attention prefer some tokens to others.
            initializer_range=0.2,
        ),
        image_token_index=ids[IMAGE_TOKEN],
        image_seq_length=(_IMAGE_SIZE // _PATCH_SIZE) ** 2,
    )


def _tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer (any text comes back as it went in), with LLaMA's special tokens."""
    unk, bos, eos, image, pad = _SPECIAL
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [CONVERSATIONS["vicuna_v1"].system] + [text for text, _ in embedded.TEXTS]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, _SPECIAL.index(bos))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=unk,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        extra_special_tokens={"image_token": image},
        model_max_length=_CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
