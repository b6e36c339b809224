"""The CLIP that encodes images, for checkpoints that only name it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from transformers import CLIPVisionConfig

from llava.checkpoint import check_model_type, read_config, reading
from llava.errors import BadInput, shown
from llava.folders import cached, fetched, is_hub_id
from llava.hf_layout import read_image_processor
from llava.shapes import SHAPES, clip_processor, vision_config

# LLaVA-1.5's. Its shape is known, so that weights in the checkpoint itself need nothing else.
_KNOWN = "openai/clip-vit-large-patch14-336"


@dataclass(frozen=True)
class VisionTower:
    """`folder` has CLIP's config, image processor and weights; it is None where only the known shape is needed."""

    folder: Path | None
    config: CLIPVisionConfig
    image_processor: Any


def find_vision_tower(checkpoint: Path, name: str, *, has_weights: bool, may_fetch: bool) -> VisionTower:
    """The tower `name`: a folder in `checkpoint` or elsewhere, or a hub id, from the hub's cache unless `may_fetch`.

    `has_weights`: its weights are in the checkpoint. Raises BadInput where it is not there, or no CLIP.
    """
    folder = _local(checkpoint, name)
    if folder is None and has_weights and name == _KNOWN:
        config = vision_config(SHAPES["7b"])
        return VisionTower(None, config, clip_processor(config.image_size))
    if folder is None and is_hub_id(name):
        folder = fetched(name) if may_fetch else cached(name)
    if folder is None:
        raise BadInput(
            f"the vision tower {shown(name)} must be on this machine, in folder {shown(PurePath(name).name)} of the "
            f"checkpoint or in the hub's cache, got neither for {shown(str(checkpoint))}"
        )
    config = _config(folder)
    return VisionTower(folder, config, read_image_processor(folder, config.image_size))


def _local(checkpoint: Path, name: str) -> Path | None:
    try:
        candidates = (checkpoint / name, checkpoint / PurePath(name).name, Path(name))
        return next((folder for folder in candidates if (folder / "config.json").is_file()), None)
    except (OSError, ValueError):  # too long for a path, or no path at all
        return None


def _config(folder: Path) -> CLIPVisionConfig:
    raw = read_config(folder)
    check_model_type(folder, raw, "clip", "clip_vision_model")
    return reading(folder, "config.json", lambda: CLIPVisionConfig.from_dict(raw.get("vision_config", raw)))
