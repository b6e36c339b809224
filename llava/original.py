"""Checkpoints as LLaVA's authors publish them, liuhaotian/llava-v1.5-7b for one, and projectors alone with a base.

config.json is LLaMA's with `mm_*` keys about the image; the vision tower is a CLIP that is only named; the vocabulary
has no `<image>`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AddedToken, AutoTokenizer, CLIPVisionConfig, LlamaConfig, LlamaTokenizer
from transformers.utils import is_protobuf_available, is_sentencepiece_available

from himap import HimapLlavaConfig, HimapLlavaForConditionalGeneration
from llava.checkpoint import (
    Checkpoint,
    check_model_type,
    empty_model,
    pretrained,
    read_config,
    reading,
)
from llava.conversation import IMAGE_TOKEN
from llava.errors import BadInput, shown
from llava.hf_layout import check_token_count, check_tokenizer_files, has_tokenizer
from llava.load_options import DTYPES
from llava.lora import BESIDE, Lora, is_lora
from llava.model_shape import image_token_count
from llava.placement import Placement
from llava.prompting import tokenise_around_images
from llava.vision_tower import find_vision_tower
from llava.weight_files import has_weights, open_tensors, shape_of, weight_files
from vram.extras import remedy

_PAD_TOKEN = "<pad>"  # noqa: S105  # a token of text, not a secret
_ROWS_STEP = 64  # transformers' own conversion pads 32002 tokens to 32064 rows
_SELECT = {"patch": "default", "cls_patch": "full"}  # theirs, transformers'
_SHAPE = (  # of the decoder: a default in the place of any of these would be another model
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "rms_norm_eps",
)
_DETAILS = (
    "attention_bias",
    "bos_token_id",
    "eos_token_id",
    "head_dim",
    "hidden_act",
    "initializer_range",
    "mlp_bias",
    "num_key_value_heads",
    "rope_scaling",
    "rope_theta",
)
_PROJECTORS = ("mm_projector.safetensors", "mm_projector.bin")

_TOWER = "model.vision_tower."
_ROWS = ("model.language_model.embed_tokens.weight", "lm_head.weight")
# Beginnings of keys: theirs, ours.
_LLAVA_KEYS = (
    ("model.vision_tower.vision_tower.vision_model.", _TOWER),
    ("model.mm_projector.0.", "model.multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "model.multi_modal_projector.linear_2."),
    ("model.embed_tokens.", "model.language_model.embed_tokens."),
    ("model.layers.", "model.language_model.layers."),
    ("model.norm.", "model.language_model.norm."),
    ("lm_head.", "lm_head."),
)
# Weights that were trained beside a LoRA are named as peft's model of a LLaVA does, or already without peft.
_BESIDE_KEYS = (*((f"base_model.model.{theirs}", ours) for theirs, ours in _LLAVA_KEYS), *_LLAVA_KEYS)
_CLIP_KEYS = (("vision_model.", _TOWER),)
_CLIP_VISION_KEYS = (("", _TOWER),)
_COMPUTED = (".rotary_emb.inv_freq", "embeddings.position_ids")  # once saved, computed today
_SHOWN_KEYS = 5
_DTYPES = tuple(dtype for dtype in DTYPES if dtype != "auto")


def is_original(raw: Mapping[str, Any]) -> bool:
    """Whether a config.json is of the original layout."""
    return "mm_vision_tower" in raw or raw.get("model_type") == "llava_llama"


def open_original(folder: Path, raw: dict[str, Any], *, base: Path | None, may_fetch: bool) -> Checkpoint:
    """The checkpoint in `folder`, whose config.json is `raw`. With `base`, `folder` is a projector or a LoRA.

    A projector's base is a LLaMA's folder; a LoRA's may be a LLaVA's too, in the original layout.
    The network is used for the vision tower only, and only if `may_fetch`. Raises BadInput where anything is missing,
    foreign or misshapen, naming the file or key; no weights are read yet.
    """
    _check_config(folder, raw)
    lora = Lora(folder) if is_lora(folder) else None
    if lora is not None:
        if base is None:
            raise BadInput(f"a LoRA needs a model base, got none for {shown(str(folder))}")
        check_model_type(base, read_config(base), "llama", "llava", "llava_llama")
        parts = [_Part(tuple(weight_files(base)), _LLAVA_KEYS), _Part((folder / BESIDE,), _BESIDE_KEYS)]
    elif base is None:
        if not has_weights(folder) and (projectors := _projectors(folder)):
            raise BadInput(f"a projector needs a model base, got only {projectors[0].name} in {shown(str(folder))}")
        parts = [_Part(tuple(weight_files(folder)), _LLAVA_KEYS)]
    else:
        check_model_type(base, read_config(base), "llama")
        parts = [_Part(tuple(weight_files(base)), _LLAVA_KEYS), _Part((_projector(folder),), _LLAVA_KEYS)]
    has_tower = any(key.startswith(_TOWER) for part in parts for key, _, _ in part.tensors())
    tower = find_vision_tower(folder, raw["mm_vision_tower"], has_weights=has_tower, may_fetch=may_fetch)
    if not has_tower:
        assert tower.folder is not None
        parts.append(_clip(tower.folder))
    tokenizer = _tokenizer(base or folder, raw["vocab_size"])
    config = _config(folder, raw, tower.config, tokenizer)
    weights = _OriginalWeights(folder, tuple(parts), raw["vocab_size"], lora)
    weights.check(config)
    pads_images = raw.get("image_aspect_ratio") == "pad"
    return Checkpoint(folder, config, tokenizer, tower.image_processor, weights, pads_images)


def original_config(folder: Path, raw: dict[str, Any]) -> HimapLlavaConfig:
    """The config of a folder that may hold nothing else. Raises BadInput as `open_original` does."""
    _check_config(folder, raw)
    tower = find_vision_tower(folder, raw["mm_vision_tower"], has_weights=True, may_fetch=False)
    return _config(folder, raw, tower.config, original_tokenizer(folder, raw) or _Unread(raw["vocab_size"]))


def original_tokenizer(folder: Path, raw: Mapping[str, Any]) -> Any | None:
    """The tokenizer, where `folder` has one."""
    return _tokenizer(folder, raw["vocab_size"]) if has_tokenizer(folder) else None


@dataclass(frozen=True)
class _Unread:
    """Stands for a missing tokenizer as far as a config needs one: its last tokens are the two that we add."""

    rows: int

    def get_vocab(self) -> dict[str, int]:
        return {IMAGE_TOKEN: self.rows, _PAD_TOKEN: self.rows + 1}

    def __len__(self) -> int:
        return self.rows + 2


@dataclass(frozen=True)
class _Part:
    """Files with a part of the model. `keys`: how their keys begin, and ours. `others`: take other keys as they are."""

    files: tuple[Path, ...]
    keys: tuple[tuple[str, str], ...]
    others: bool = True

    def tensors(self) -> Iterator[tuple[str, str, Any]]:
        """(our key, their key, tensor) of each, unread."""
        for key, tensor in open_tensors(self.files).items():
            begins = next(((theirs, ours) for theirs, ours in self.keys if key.startswith(theirs)), None)
            if not key.endswith(_COMPUTED) and (begins or self.others):
                theirs, ours = begins or ("", "")
                yield ours + key.removeprefix(theirs), key, tensor

    def their_key(self, key: str) -> str | None:
        """Their name of our `key`; None if the part has no such key."""
        begins = next(((theirs, ours) for theirs, ours in self.keys if key.startswith(ours)), None)
        return None if begins is None else begins[0] + key.removeprefix(begins[1])


@dataclass(frozen=True)
class _OriginalWeights:
    """Weights in `parts`: the last one that holds a key counts. `rows` are the tokens that the files know.

    A `lora` is merged into them.
    """

    folder: Path
    parts: tuple[_Part, ...]
    rows: int
    lora: Lora | None = None

    def check(self, config: HimapLlavaConfig) -> None:
        """Raise BadInput, naming keys as the files do, unless the files hold exactly the model's."""
        expected = {key: tuple(tensor.shape) for key, tensor in _meta_state(config).items()}
        expected |= {key: (self.rows, *expected[key][1:]) for key in _ROWS}
        actual = {ours: (theirs, shape_of(tensor)) for part in self.parts for ours, theirs, tensor in part.tensors()}
        problems = {
            "missing": [self._their_key(key) for key in expected if key not in actual],
            "unexpected": [theirs for ours, (theirs, _) in actual.items() if ours not in expected],
            "misshapen": [
                f"{theirs} {shape} instead of {expected[ours]}"
                for ours, (theirs, shape) in actual.items()
                if shape != expected.get(ours, shape)
            ],
        }
        if any(problems.values()):
            listed = "; ".join(f"{problem} {_listed(keys)}" for problem, keys in problems.items() if keys)
            raise BadInput(
                f"a checkpoint must hold exactly the model's keys, got {listed} in {shown(str(self.folder))}"
            )
        if self.lora is not None:
            self.lora.check(config)

    def load(self, config: HimapLlavaConfig, placement: Placement) -> HimapLlavaForConditionalGeneration:
        """The model."""
        tensors = {ours: tensor for part in self.parts for ours, _, tensor in part.tensors()}
        if self.lora is not None:
            tensors |= self.lora.merge(config, tensors)
        for key in _ROWS:
            tensors[key] = _with_rows(tensors[key][...], config.text_config.vocab_size)
        return pretrained(self.folder, config, placement, None, state_dict=tensors)

    def _their_key(self, key: str) -> str:
        names = (part.their_key(key) for part in reversed(self.parts))
        return next((name for name in names if name is not None), key)


def _meta_state(config: HimapLlavaConfig) -> dict[str, Tensor]:
    state: dict[str, Tensor] = empty_model(config, torch.device("meta")).state_dict()
    return state


def _listed(keys: list[str]) -> str:
    more = len(keys) - _SHOWN_KEYS
    return ", ".join(sorted(keys)[:_SHOWN_KEYS]) + (f" and {more} more" if more > 0 else "")


def _with_rows(rows: Tensor, count: int) -> Tensor:
    """`rows` and, up to `count` of them, their mean: a token whose logit is the mean is never the greatest."""
    mean = rows.mean(dim=0, keepdim=True, dtype=torch.float32).to(rows.dtype)
    return torch.cat([rows, mean.expand(count - rows.shape[0], -1)])


def _projector(folder: Path) -> Path:
    projectors = _projectors(folder)
    if not projectors:
        raise BadInput(
            f"with a model base, a checkpoint must have {' or '.join(_PROJECTORS)}, got neither in {shown(str(folder))}"
        )
    return projectors[0]


def _projectors(folder: Path) -> list[Path]:
    return [folder / name for name in _PROJECTORS if (folder / name).is_file()]


def _clip(folder: Path) -> _Part:
    """The vision tower in a CLIP's folder, beside CLIP's other half or alone."""
    files = tuple(weight_files(folder))
    if any(key.startswith(_CLIP_KEYS[0][0]) for key in open_tensors(files)):
        return _Part(files, _CLIP_KEYS, others=False)
    return _Part(files, _CLIP_VISION_KEYS)


def _check_config(folder: Path, raw: Mapping[str, Any]) -> None:
    """Raise BadInput unless the config has all we must know, and nothing that transformers' LLaVA can't do."""
    for key in (*_SHAPE, "mm_vision_tower", "mm_vision_select_layer"):
        if raw.get(key) is None:
            raise BadInput(f"config.json must say {key}, got none in {shown(str(folder))}")
    rules: dict[str, tuple[str, bool]] = {
        "vocab_size": ("a whole number above 0", isinstance(raw["vocab_size"], int) and raw["vocab_size"] > 0),
        "mm_vision_tower": ("a name", isinstance(raw["mm_vision_tower"], str) and raw["mm_vision_tower"] != ""),
        "mm_vision_select_layer": ("a whole number", isinstance(raw["mm_vision_select_layer"], int)),
        "mm_vision_select_feature": (
            " or ".join(_SELECT),
            raw.get("mm_vision_select_feature", "patch") in _SELECT,
        ),
        "mm_projector_type": ("mlp2x_gelu", raw.get("mm_projector_type") == "mlp2x_gelu"),
        "mm_use_im_start_end": ("false", not raw.get("mm_use_im_start_end")),
        "mm_patch_merge_type": ("flat", raw.get("mm_patch_merge_type") in (None, "flat")),
        "image_aspect_ratio": ("pad or square", raw.get("image_aspect_ratio") in (None, "pad", "square")),
    }
    for key, (rule, is_kept) in rules.items():
        if not is_kept:
            raise BadInput(f"{key} must be {rule}, got {shown(raw.get(key))} in {shown(str(folder))}")


def _check_tower(folder: Path, raw: Mapping[str, Any], vision: CLIPVisionConfig) -> None:
    """Raise BadInput where the config contradicts its vision tower."""
    if raw.get("mm_hidden_size", vision.hidden_size) != vision.hidden_size:
        raise BadInput(
            f"mm_hidden_size must be the vision tower's {vision.hidden_size}, got {shown(raw['mm_hidden_size'])} "
            f"in {shown(str(folder))}"
        )
    layer, layers = raw["mm_vision_select_layer"], vision.num_hidden_layers
    if not -layers - 1 <= layer <= layers:
        raise BadInput(
            f"mm_vision_select_layer must be in {-layers - 1}..{layers}, got {layer} in {shown(str(folder))}"
        )


def _config(folder: Path, raw: Mapping[str, Any], vision: CLIPVisionConfig, tokenizer: Any) -> HimapLlavaConfig:
    """The config in transformers' terms; rows of the vocabulary are added for the tokens that the files don't know."""
    _check_tower(folder, raw, vision)
    dtype = raw.get("torch_dtype") or raw.get("dtype") or "float16"
    if dtype not in _DTYPES:
        raise BadInput(f"torch_dtype must be one of {', '.join(_DTYPES)}, got {shown(dtype)} in {shown(str(folder))}")
    ids = tokenizer.get_vocab()
    decoder = {key: raw[key] for key in (*_SHAPE, *_DETAILS) if raw.get(key) is not None}
    decoder["vocab_size"] = max(raw["vocab_size"], -(-len(tokenizer) // _ROWS_STEP) * _ROWS_STEP)

    def make() -> HimapLlavaConfig:
        config = HimapLlavaConfig(
            vision_config=vision,
            text_config=LlamaConfig(**decoder, pad_token_id=ids[_PAD_TOKEN]),
            image_token_index=ids[IMAGE_TOKEN],
            projector_hidden_act="gelu",
            vision_feature_layer=raw["mm_vision_select_layer"],
            vision_feature_select_strategy=_SELECT[raw.get("mm_vision_select_feature", "patch")],
            dtype=dtype,
        )
        config.image_seq_length = image_token_count(config)
        return config

    return reading(folder, "config.json", make)


def _tokenizer(folder: Path, rows: int) -> Any:
    """The tokenizer in `folder`, with `<image>` and `<pad>` as its last tokens where it has none."""
    check_tokenizer_files(folder)
    tokenizer = reading(folder, "tokenizer", lambda: _read_tokenizer(folder))
    check_token_count(tokenizer, rows, folder)
    tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, normalized=False)], special_tokens=True)
    tokenizer.add_special_tokens({"pad_token": _PAD_TOKEN})
    tokenise_around_images(tokenizer)
    return tokenizer


def _read_tokenizer(folder: Path) -> Any:
    has_packages = is_sentencepiece_available() and is_protobuf_available()
    is_fast = (folder / "tokenizer.json").is_file()
    if is_fast and not (has_packages and (folder / "tokenizer.model").is_file()):
        # Given a config, it does not look for one: "llava_llama" is none it knows.
        return AutoTokenizer.from_pretrained(
            folder, config=LlamaConfig(), local_files_only=True, trust_remote_code=False
        )
    if not has_packages:
        raise BadInput(
            f"tokenizer.model needs the packages sentencepiece and protobuf, one is missing ({remedy('llava')}), got "
            f"only it in {shown(str(folder))}"
        )
    # As transformers 4.31, the original's, read such a folder: other keys of the config change no ids there.
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return LlamaTokenizer.from_pretrained(
        folder,
        add_bos_token=bool(settings.get("add_bos_token", True)),
        add_eos_token=bool(settings.get("add_eos_token", False)),
        add_prefix_space=True,
        local_files_only=True,
    )
