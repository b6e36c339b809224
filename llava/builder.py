"""Opening and loading checkpoints by name: a folder, preset or hub id."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Unpack

from himap import HimapLlavaForConditionalGeneration
from llava.checkpoint import Checkpoint, check_model_type, read_config
from llava.errors import BadInput, shown
from llava.folders import fetched, is_hub_id, local_folder
from llava.hf_layout import open_hf
from llava.load_options import LoadOptions
from llava.lora import is_lora
from llava.original import is_original, open_original
from llava.placement import placed
from llava.presets import PRESETS, open_preset

__all__ = ["Checkpoint", "load_pretrained_model", "open_checkpoint"]


def load_pretrained_model(
    model_path: str | Path,
    model_base: str | Path | None = None,
    model_name: str | None = None,
    **options: Unpack[LoadOptions],
) -> tuple[Any, HimapLlavaForConditionalGeneration, Any, int]:
    """(tokenizer, model, image processor, context length in tokens) of the checkpoint `model_path`.

    `model_path` is a folder in Hugging Face or in the original LLaVA's layout, a preset ("tiny", or "7b" and "13b",
    whose random weights are made on the device), or a hub id (only then is the network used). With `model_base`, the
    folder or hub id of a LLaMA, `model_path` holds a projector only, or a LoRA, which peft merges into the base (for a
    LoRA it may be a LLaVA too). `model_name` is taken for the original's sake and changes nothing. `options` are those
    of `LoadOptions`. Pickles (`.bin`) are read by `torch.load(weights_only=True)`: tensors only, no code in them runs.

    Raises BadInput where the checkpoint is incomplete, foreign or broken (naming files or keys), and for a device,
    dtype, attention or package that is not there.
    """
    checkpoint = open_checkpoint(model_path, model_base)
    model = checkpoint.load_model(placed(**options))
    return checkpoint.tokenizer, model, checkpoint.image_processor, checkpoint.context_len


def open_checkpoint(model_path: str | Path, model_base: str | Path | None = None) -> Checkpoint:
    """The checkpoint without its weights, checked. Raises BadInput as `load_pretrained_model` does."""
    name = str(model_path)
    if name in PRESETS:
        _refuse_base(name, model_base)
        return open_preset(name)
    folder, may_fetch = _folder(name)
    raw = read_config(folder)
    if not is_original(raw):
        _refuse_lora(folder)
        _refuse_base(name, model_base)
        return open_hf(folder)
    check_model_type(folder, raw, "llava", "llava_llama")
    base = None
    if model_base is not None:
        base, _ = _folder(str(model_base))
        _refuse_lora(base)
    return open_original(folder, raw, base=base, may_fetch=may_fetch)


def _folder(name: str) -> tuple[Path, bool]:
    """The folder of `name`, and whether it came by a hub id."""
    if (folder := local_folder(name)) is not None:
        return folder, False
    if not is_hub_id(name):
        raise BadInput(
            f"the model must be an existing folder, a hub id or a preset ({', '.join(PRESETS)}), got {shown(name)}"
        )
    return fetched(name), True


def _refuse_base(name: str, model_base: str | Path | None) -> None:
    if model_base is not None:
        raise BadInput(
            f"a model base is for a projector in the original LLaVA's layout, got {shown(str(model_base))} "
            f"for {shown(name)}"
        )


def _refuse_lora(folder: Path) -> None:
    if is_lora(folder):
        raise BadInput(
            "a LoRA must have been merged into its base, or be in the original LLaVA's layout and come with its base, "
            f"got one in {shown(str(folder))}"
        )
