"""From a model's name to a model that answers: folder, preset or hub id -> tokenizer, weights, image processor."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoImageProcessor, AutoTokenizer, GenerationConfig
from transformers.utils import is_flash_attn_2_available

from himap import HimapLlavaConfig, HimapLlavaForConditionalGeneration
from llava.choices import ATTENTIONS, DTYPES
from llava.conversation import IMAGE_TOKEN
from llava.errors import BadInput, shown
from llava.presets import PRESETS, preset_folder
from llava.quiet import quiet
from vram.oom import is_out_of_memory

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_LATER_PRESETS = ("7b", "13b")
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model")
T = TypeVar("T")


@dataclass(frozen=True)
class Checkpoint:
    """Everything of a LLaVA checkpoint but its weights."""

    folder: Path
    config: HimapLlavaConfig
    tokenizer: Any
    image_processor: Any

    @property
    def context_len(self) -> int:
        """The longest prompt the model takes, in tokens."""
        return int(self.config.text_config.max_position_embeddings)

    def load_model(
        self,
        *,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
        attn_implementation: str = "sdpa",
    ) -> HimapLlavaForConditionalGeneration:
        """The model with its weights, in eval mode and without gradients. See `load_pretrained_model`."""
        place = resolve_device(device)
        number = _dtype(dtype, place)
        check_attention(attn_implementation, place)
        model: HimapLlavaForConditionalGeneration = _reading(
            self.folder,
            "set of weights",
            lambda: HimapLlavaForConditionalGeneration.from_pretrained(
                self.folder,
                config=self.config,
                dtype=number,
                attn_implementation=attn_implementation,
                use_safetensors=True,
                local_files_only=True,
            ),
        )
        # The checkpoint's sampling defaults would only make `generate` warn: answers here are greedy.
        model.generation_config = GenerationConfig(
            eos_token_id=_first_set(model.generation_config.eos_token_id, self.tokenizer.eos_token_id),
            # Unset, `generate` would warn at every answer. One prompt at a time is never padded.
            pad_token_id=_first_set(self.tokenizer.pad_token_id, self.tokenizer.eos_token_id),
        )
        model.to(place).eval().requires_grad_(False)
        return model


def load_pretrained_model(
    model_path: str | Path,
    model_base: str | None = None,
    model_name: str | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    attn_implementation: str = "sdpa",
) -> tuple[Any, HimapLlavaForConditionalGeneration, Any, int]:
    """(tokenizer, model, image processor, context length in tokens) of the checkpoint `model_path`.

    `model_path` is a folder in Hugging Face layout, the preset "tiny", or a hub id (only then is the network used).
    `model_name` is taken for the original's sake and changes nothing. `dtype` None means float16 on CUDA and float32
    on the CPU; "auto" is the checkpoint's own. Weights are read from safetensors only.

    Raises BadInput where the checkpoint is incomplete, foreign or broken (naming files or keys), and for a device,
    dtype or attention that is not there.
    """
    checkpoint = open_checkpoint(model_path, model_base)
    model = checkpoint.load_model(device=device, dtype=dtype, attn_implementation=attn_implementation)
    return checkpoint.tokenizer, model, checkpoint.image_processor, checkpoint.context_len


def open_checkpoint(model_path: str | Path, model_base: str | None = None) -> Checkpoint:
    """The checkpoint without its weights, checked. Raises BadInput as `load_pretrained_model` does."""
    if model_base is not None:
        raise BadInput(f"checkpoints of a projector or LoRA only, with a model base, are not supported: {model_base!r}")
    folder = _folder(model_path)
    config = _config(folder)
    tokenizer = _tokenizer(folder, config)
    _check_weight_files(folder)
    return Checkpoint(folder, config, tokenizer, _image_processor(folder, config))


def image_token_count(config: HimapLlavaConfig) -> int:
    """I, the number of image tokens one image becomes."""
    vision = config.vision_config
    # CLIP puts a class token first; "default" drops it, "full" keeps it.
    return int((vision.image_size // vision.patch_size) ** 2 + (config.vision_feature_select_strategy == "full"))


def resolve_device(device: str | torch.device) -> torch.device:
    """The torch device of "cpu", "cuda", "cuda:1" or "auto" (CUDA if there is one). Raises BadInput if it is absent."""
    name = str(device)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    match = re.fullmatch(r"cpu|cuda(?::(\d{1,4}))?", name)
    if match is None:
        raise BadInput(f"the device must be auto, cpu, cuda or cuda:NUMBER, got {shown(name)}")
    if name != "cpu" and int(match[1] or 0) >= torch.cuda.device_count():
        raise BadInput(f"the device must be there, got {name} with {torch.cuda.device_count()} CUDA devices")
    return torch.device(name)


def check_attention(attn_implementation: str, device: torch.device) -> None:
    """Raise BadInput unless that attention implementation is known and runs on `device`."""
    if attn_implementation not in ATTENTIONS:
        raise BadInput(f"attention must be one of {', '.join(ATTENTIONS)}, got {shown(attn_implementation)}")
    if attn_implementation == "flash_attention_2" and not (device.type == "cuda" and is_flash_attn_2_available()):
        raise BadInput(
            f"flash_attention_2 needs a CUDA device and the package flash-attn, got {device}, "
            f"package {'there' if is_flash_attn_2_available() else 'missing'}"
        )


def _dtype(dtype: str | torch.dtype | None, device: torch.device) -> str | torch.dtype:
    if dtype is None:
        return torch.float16 if device.type == "cuda" else torch.float32
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise BadInput(f"the dtype must be one of {', '.join(DTYPES)}, got {shown(name)}")
    return name if name == "auto" else cast(torch.dtype, getattr(torch, name))


def _folder(model_path: str | Path) -> Path:
    name = str(model_path)
    if name in PRESETS:
        return preset_folder(name)
    try:
        if name and Path(name).is_dir():
            return Path(name)
        there = Path(name).exists()
    except (OSError, ValueError) as error:
        raise BadInput(f"the model path must be usable, got {shown(name)}: {error}") from error
    if there or name in _LATER_PRESETS or not _HUB_ID.fullmatch(name):
        raise BadInput(
            f"the model must be an existing folder, a hub id or a preset ({', '.join(PRESETS)}), got {shown(name)}"
        )
    return _downloaded(name)


def _downloaded(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download  # only here may the network be used

    patterns = ["*.json", "*.safetensors", "tokenizer.model"]
    try:
        return Path(snapshot_download(hub_id, allow_patterns=patterns))
    except Exception as error:  # the client's, the transport's or the disk's
        raise BadInput(
            f"the model must be an existing folder, a preset or a hub id that can be fetched, got {shown(hub_id)}: "
            f"{_first_line(error)}"
        ) from error


def _config(folder: Path) -> HimapLlavaConfig:
    path = folder / "config.json"

    def read() -> Any:
        return json.loads(path.read_text(encoding="utf-8"))

    raw = _reading(folder, "config.json", read)
    if not isinstance(raw, dict) or raw.get("model_type") not in ("llava", "llava_llama"):
        got = raw.get("model_type") if isinstance(raw, dict) else raw
        raise BadInput(f"config.json must be of model type llava, got {shown(got)} in {shown(str(folder))}")
    if "mm_vision_tower" in raw or raw["model_type"] != "llava":
        raise BadInput(f"a checkpoint must be in Hugging Face layout, got the original LLaVA's in {shown(str(folder))}")
    config: HimapLlavaConfig = _reading(folder, "config.json", lambda: HimapLlavaConfig.from_dict(raw))
    for part, wanted in (("text_config", "llama"), ("vision_config", "clip_vision_model")):
        got = getattr(config, part).model_type
        if got != wanted:
            raise BadInput(f"{part} must be of model type {wanted}, got {shown(got)} in {shown(str(folder))}")
    return config


def _tokenizer(folder: Path, config: HimapLlavaConfig) -> Any:
    if not any((folder / name).is_file() for name in _TOKENIZERS):  # transformers would make an empty one
        raise BadInput(f"a checkpoint must have {' or '.join(_TOKENIZERS)}, got neither in {shown(str(folder))}")
    tokenizer = _reading(
        folder,
        "tokenizer",
        lambda: AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False),
    )
    image_id, vocabulary = tokenizer.get_vocab().get(IMAGE_TOKEN), config.text_config.vocab_size
    if image_id is None or image_id != config.image_token_id:
        raise BadInput(
            f"the tokenizer must have the token {IMAGE_TOKEN} with the config's id {config.image_token_id}, "
            f"got {image_id} in {shown(str(folder))}"
        )
    if len(tokenizer) > vocabulary:
        raise BadInput(
            f"the tokenizer must have at most the model's {vocabulary} tokens, got {len(tokenizer)} "
            f"in {shown(str(folder))}"
        )
    return tokenizer


def _image_processor(folder: Path, config: HimapLlavaConfig) -> Any:
    processor = _reading(
        folder,
        "image processor",
        lambda: AutoImageProcessor.from_pretrained(
            folder, backend="pil", local_files_only=True, trust_remote_code=False
        ),
    )
    side = config.vision_config.image_size
    size = dict(processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size)
    if (size.get("height"), size.get("width")) != (side, side):
        raise BadInput(f"the image processor must give {side} x {side} pixels, got {size} in {shown(str(folder))}")
    return processor


def _check_weight_files(folder: Path) -> None:
    """Every weight file is there and whole, so that what is wrong can be named before gigabytes are read."""
    names = {_WEIGHTS}
    if not (folder / _WEIGHTS).is_file():
        index = folder / _INDEX
        if not index.is_file():
            raise BadInput(f"a checkpoint must have {_WEIGHTS} or {_INDEX}, got neither in {shown(str(folder))}")
        names = _reading(folder, _INDEX, lambda: _shards(index))
    for name in sorted(names):
        try:
            with safe_open(folder / name, framework="pt"):
                pass
        except (OSError, SafetensorError) as error:
            raise BadInput(
                f"a weight file must be whole, got {shown(name)} in {shown(str(folder))}: {_first_line(error)}"
            ) from error


def _shards(index: Path) -> set[str]:
    return {str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}


def _reading(folder: Path, what: str, read: Callable[[], T]) -> T:
    """`read()`; what goes wrong in it is the checkpoint's fault, except running out of memory."""
    try:
        with quiet():
            return read()
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, TypeError, its own and worse
        if isinstance(error, MemoryError) or is_out_of_memory(error):
            raise
        raise BadInput(
            f"a checkpoint must have a whole and fitting {what}, got {shown(str(folder))}: {_first_line(error)}"
        ) from error


def _first_set(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
