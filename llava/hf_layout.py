"""Checkpoints as transformers writes them, llava-hf/llava-1.5-7b-hf for one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, CLIPImageProcessorPil

from himap import HimapLlavaConfig, HimapLlavaForConditionalGeneration
from llava.checkpoint import Checkpoint, check_model_type, pretrained, read_config, reading
from llava.conversation import IMAGE_TOKEN
from llava.errors import BadInput, shown
from llava.placement import Placement
from llava.weight_files import open_tensors, weight_files

_TOKENIZERS = ("tokenizer.json", "tokenizer.model")


def open_hf(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`, its weights unread. Raises BadInput where it is incomplete or foreign."""
    config = hf_config(folder)
    tokenizer = hf_tokenizer(folder, config)
    files = weight_files(folder)
    open_tensors(files)  # so that a fault is named before gigabytes are read
    image_processor = read_image_processor(folder, config.vision_config.image_size)
    weights = _FolderWeights(folder, files[0].suffix)
    pads_images = getattr(config, "image_aspect_ratio", None) == "pad"
    return Checkpoint(folder, config, tokenizer, image_processor, weights, pads_images)


@dataclass(frozen=True)
class _FolderWeights:
    folder: Path
    suffix: str

    def load(self, config: HimapLlavaConfig, placement: Placement) -> HimapLlavaForConditionalGeneration:
        # transformers reads pickles with weights_only, but picks the files itself unless this says which.
        return pretrained(self.folder, config, placement, self.folder, use_safetensors=self.suffix == ".safetensors")


def check_tokenizer_files(folder: Path) -> None:
    """Raise BadInput where `folder` has no tokenizer: transformers would make an empty one."""
    if not has_tokenizer(folder):
        raise BadInput(f"a checkpoint must have {' or '.join(_TOKENIZERS)}, got neither in {shown(str(folder))}")


def has_tokenizer(folder: Path) -> bool:
    """Whether `folder` has a tokenizer's file."""
    return any((folder / name).is_file() for name in _TOKENIZERS)


def check_token_count(tokenizer: Any, vocabulary: int, folder: Path) -> None:
    """Raise BadInput where the tokenizer knows more tokens than the model."""
    if len(tokenizer) > vocabulary:
        raise BadInput(
            f"the tokenizer must have at most the model's {vocabulary} tokens, got {len(tokenizer)} "
            f"in {shown(str(folder))}"
        )


def read_image_processor(folder: Path, side: int) -> Any:
    """CLIP's image processor as `folder` sets it, made of Pillow. Raises BadInput unless it gives side x side."""

    def read() -> Any:
        settings, _ = CLIPImageProcessorPil.get_image_processor_dict(folder, local_files_only=True)
        kind = str(settings.get("image_processor_type", "CLIPImageProcessor"))
        if not kind.startswith("CLIPImageProcessor"):
            raise BadInput(f"the image processor must be CLIP's, got {shown(kind)} in {shown(str(folder))}")
        return CLIPImageProcessorPil.from_dict(settings)

    processor = reading(folder, "image processor", read)
    size = dict(processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size)
    if (size.get("height"), size.get("width")) != (side, side):
        raise BadInput(f"the image processor must give {side} x {side} pixels, got {size} in {shown(str(folder))}")
    return processor


def hf_config(folder: Path) -> HimapLlavaConfig:
    """The config in `folder`. Raises BadInput where it is none of LLaVA-1.5's kind."""
    raw = read_config(folder)
    check_model_type(folder, raw, "llava")
    config: HimapLlavaConfig = reading(folder, "config.json", lambda: HimapLlavaConfig.from_dict(raw))
    for part, expected in (("text_config", "llama"), ("vision_config", "clip_vision_model")):
        model_type = getattr(config, part).model_type
        if model_type != expected:
            raise BadInput(f"{part} must be of model type {expected}, got {shown(model_type)} in {shown(str(folder))}")
    return config


def hf_tokenizer(folder: Path, config: HimapLlavaConfig) -> Any:
    """The tokenizer in `folder`. Raises BadInput where it is missing or of another model."""
    check_tokenizer_files(folder)
    tokenizer = reading(
        folder,
        "tokenizer",
        lambda: AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False),
    )
    image_id = tokenizer.get_vocab().get(IMAGE_TOKEN)
    if image_id is None or image_id != config.image_token_id:
        raise BadInput(
            f"the tokenizer must have the token {IMAGE_TOKEN} with the config's id {config.image_token_id}, "
            f"got {image_id} in {shown(str(folder))}"
        )
    check_token_count(tokenizer, config.text_config.vocab_size, folder)
    return tokenizer
