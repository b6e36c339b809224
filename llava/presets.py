"""Preset checkpoints: LLaVAs with random weights.

`tiny` is written once and then loaded like any other; `7b` and `13b` are made where they are to run, never on disk.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import tokenizers
import torch
import transformers
from torch._subclasses.fake_tensor import FakeTensor

from himap import HimapLlavaConfig, HimapLlavaForConditionalGeneration, multimodal
from llava import conversation, sample_questions, shapes
from llava.checkpoint import Checkpoint, empty_model
from llava.errors import BadInput, shown
from llava.hf_layout import open_hf
from llava.placement import Placement
from llava.quiet import quiet
from llava.shapes import SHAPES, Shape, clip_processor, llava_config, our_tokenizer

PRESETS = tuple(SHAPES)
_SEED = 0


def open_preset(name: str) -> Checkpoint:
    """The checkpoint of preset `name`. Raises BadInput for an unknown one."""
    if name not in PRESETS:
        raise BadInput(f"a preset must be one of {', '.join(PRESETS)}, got {shown(name)}")
    if name == "tiny":
        return replace(open_hf(tiny_folder()), has_random_weights=True)
    return random_checkpoint(name, SHAPES[name])


def random_checkpoint(name: str, shape: Shape) -> Checkpoint:
    """A checkpoint of that shape, of which nothing is on disk. Messages call it `name`."""
    tokenizer = our_tokenizer()
    config = llava_config(shape, tokenizer)
    processor = clip_processor(shape.image_size)
    return Checkpoint(None, config, tokenizer, processor, _RandomWeights(name), has_random_weights=True)


@dataclass(frozen=True)
class _RandomWeights:
    name: str

    def load(self, config: HimapLlavaConfig, placement: Placement) -> HimapLlavaForConditionalGeneration:
        """The model with weights that are the same each time, for a kind of device and a dtype."""
        if placement.device_map is not None or placement.quantization is not None:
            raise BadInput(
                f"a device map, 8 bit and 4 bit are for checkpoints on disk, got the preset {shown(self.name)}"
            )
        dtype = torch.float16 if isinstance(placement.dtype, str) else placement.dtype  # "auto": as LLaVA-1.5 is saved
        place = placement.device
        with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):  # CLIP draws one tensor by itself
            model = empty_model(config, place, dtype=dtype, attn_implementation=placement.attn_implementation)
        if not isinstance(next(model.parameters()), FakeTensor):  # which have no values: a simulated card
            draw_weights(model, torch.Generator(place).manual_seed(_SEED))
        return model


@torch.no_grad()
def draw_weights(model: HimapLlavaForConditionalGeneration, generator: torch.Generator) -> None:
    """Set every weight in place, as a training begins: biases 0, norms 1, the rest normal around 0."""
    deviation = model.config.text_config.initializer_range
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
        elif name.endswith("weight") and parameter.ndim == 1:
            parameter.fill_(1)
        else:
            parameter.normal_(0, deviation, generator=generator)


def tiny_folder() -> Path:
    """The folder of preset `tiny`, written into the user's cache if it is not there yet.

    Two processes at once, or one that is killed, leave no half checkpoint. Where the cache can't be written, a
    temporary folder of this process is used.
    """
    try:
        folder = _cache_home() / "himap-vram" / f"tiny-{_digest()}"
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            _write_complete(folder)
    except (OSError, RuntimeError):  # Path.home raises RuntimeError where there is none
        return _temporary_tiny()
    return folder


def _cache_home() -> Path:
    configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return configured if configured.is_absolute() else Path.home() / ".cache"


def _digest() -> str:
    """Digest of the code and texts that the checkpoint is made from, and of the libraries that write it."""
    modules = (shapes, sample_questions, conversation, multimodal)
    parts = [Path(file).read_bytes() for file in (__file__, *(str(module.__file__) for module in modules))]
    parts += [module.__version__.encode() for module in (tokenizers, torch, transformers)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _write_complete(folder: Path) -> None:
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
    shape = SHAPES["tiny"]
    tokenizer = our_tokenizer()
    tokenizer.save_pretrained(folder)
    clip_processor(shape.image_size).save_pretrained(folder)
    config = llava_config(shape, tokenizer)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(0)
        model = HimapLlavaForConditionalGeneration(config)
    with quiet():
        model.save_pretrained(folder)
    config.architectures = ["LlavaForConditionalGeneration"]  # the class anyone has
    config.save_pretrained(folder)
