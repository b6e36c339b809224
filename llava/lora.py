"""LoRA checkpoints of LLaVA: an adapter of the decoder and what was trained beside it, merged into a base by peft."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import is_peft_available

from himap import HimapLlavaConfig
from llava.checkpoint import empty_model, reading
from llava.errors import BadInput, shown
from llava.weight_files import open_tensors, shape_of
from vram.extras import remedy

BESIDE = "non_lora_trainables.bin"
_CONFIG = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


def is_lora(folder: Path) -> bool:
    """Whether `folder` holds a LoRA, or a part of one."""
    return any((folder / name).is_file() for name in (_CONFIG, *_WEIGHTS, BESIDE))


class Lora:
    """The LoRA in a folder. Raises BadInput where a file of it is missing or it is of another kind."""

    def __init__(self, folder: Path) -> None:
        weights = [folder / name for name in _WEIGHTS if (folder / name).is_file()]
        missing = [name for name in (_CONFIG, BESIDE) if not (folder / name).is_file()]
        missing += [] if weights else [" or ".join(_WEIGHTS)]
        if missing:
            raise BadInput(f"a LoRA must be whole, got none of {', '.join(missing)} in {shown(str(folder))}")
        if not is_peft_available():
            raise BadInput(
                f"a LoRA needs the package peft, which is missing ({remedy('lora')}), got one in {shown(str(folder))}"
            )
        self._folder = folder
        self._tensors = open_tensors(weights[:1])
        self._settings = reading(folder, _CONFIG, lambda: _settings(folder))

    def check(self, config: HimapLlavaConfig) -> None:
        """Raise BadInput, naming keys, unless the adapter's tensors are those of its config on this decoder."""
        self._adapted(config)

    def merge(self, config: HimapLlavaConfig, tensors: Mapping[str, Any]) -> dict[str, Tensor]:
        """The weights of `tensors` (by our keys) that the adapter changes, with it."""
        model = self._adapted(config)
        layers = {name: layer for name, layer in model.named_modules() if hasattr(layer, "base_layer")}
        with torch.no_grad():
            for name, layer in layers.items():
                layer.base_layer.weight = nn.Parameter(tensors[_our_key(name)][...], requires_grad=False)
            self._set(model)
            merged = reading(self._folder, "LoRA", model.merge_and_unload)
        return {_our_key(name): merged.get_submodule(_plain(name)).weight.data for name in layers}

    def _adapted(self, config: HimapLlavaConfig) -> Any:
        """The decoder with the adapter's modules, without weights: on the meta device."""
        import peft

        llava = empty_model(config, torch.device("meta"))
        # As the original's decoder: what "q_proj" names is not the vision tower's.
        decoder = nn.ModuleDict({"model": llava.model.language_model, "lm_head": llava.lm_head})
        settings = copy.deepcopy(self._settings)  # peft changes them
        model = reading(self._folder, _CONFIG, lambda: peft.get_peft_model(decoder, settings, low_cpu_mem_usage=True))
        expected = {key: tuple(tensor.shape) for key, tensor in peft.get_peft_model_state_dict(model).items()}
        actual = {key: shape_of(tensor) for key, tensor in self._tensors.items()}
        differ = sorted(key for key in expected | actual if expected.get(key) != actual.get(key))
        if differ or not expected:
            raise BadInput(
                f"an adapter must hold exactly the tensors that its config names, got other {shown(differ[:3])} in "
                f"{shown(str(self._folder))}"
            )
        return model

    def _set(self, model: Any) -> None:
        """Put the adapter's tensors into its modules. In float32: products of them are added to the weights."""
        import peft

        tensors = {key: tensor[...].to(torch.float32) for key, tensor in self._tensors.items()}
        peft.set_peft_model_state_dict(model, tensors, low_cpu_mem_usage=True)


def _settings(folder: Path) -> Any:
    import peft

    settings = peft.PeftConfig.from_pretrained(folder)
    if not isinstance(settings, peft.LoraConfig) or settings.modules_to_save:
        raise BadInput(
            f"an adapter must be a LoRA without modules_to_save, got {shown(settings.peft_type)} and "
            f"{shown(settings.modules_to_save)} in {shown(str(folder))}"
        )
    # It is merged into this base, whatever its task and its own base were.
    settings.inference_mode, settings.task_type, settings.base_model_name_or_path = True, None, None
    return settings


def _plain(name: str) -> str:
    """The name of a module in the decoder, from its name in peft's model of it."""
    return name.removeprefix("base_model.model.")


def _our_key(name: str) -> str:
    """Our key of a module's weight."""
    head, _, rest = _plain(name).partition(".")
    return f"model.language_model.{rest}.weight" if head == "model" else f"{head}.weight"
