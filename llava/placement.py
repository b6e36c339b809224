"""Placement of a model: device, dtype, attention, 8 or 4 bit, several devices and the disk."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack, cast

import torch
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.utils import is_accelerate_available, is_bitsandbytes_available, is_flash_attn_2_available

from llava.errors import BadInput, shown
from llava.load_options import ATTENTIONS, DTYPES, DeviceMap, LoadOptions

_DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
# Only the decoder's layers are quantised, as LLaVA's authors do: the rest is small, and every image goes through it.
_NOT_QUANTISED = ("model.vision_tower", "model.multi_modal_projector", "lm_head")


@dataclass(frozen=True)
class Placement:
    """Checked options of loading. `dtype` "auto" is the checkpoint's own; `device` is the first of a `device_map`."""

    device: torch.device
    dtype: str | torch.dtype
    attn_implementation: str
    device_map: DeviceMap | None = None
    offload_folder: Path | None = None
    quantization: BitsAndBytesConfig | None = None

    def options(self) -> dict[str, Any]:
        """Options of `from_pretrained`."""
        options: dict[str, Any] = {"dtype": self.dtype, "attn_implementation": self.attn_implementation}
        if self.device_map is not None:
            options["device_map"] = self.device_map if isinstance(self.device_map, str) else dict(self.device_map)
            options["offload_folder"] = self.offload_folder
        elif self.quantization is not None:
            options["device_map"] = {"": self.device}
        if self.quantization is not None:
            options["quantization_config"] = self.quantization
        return options

    def finish(self, model: Any) -> None:
        """Move a model that `from_pretrained` made with `options` to its device, if it is not there yet."""
        if self.device_map is None:
            if getattr(model, "hf_quantizer", None) is None:  # quantised weights are where they were quantised
                model.to(self.device)
        elif model.device.type == "meta":  # that is where inputs would go
            raise BadInput(
                f"the device map must keep the first module, the vision tower, on a device, got {_written(model)}"
            )


def placed(**options: Unpack[LoadOptions]) -> Placement:
    """Placement that `options` describe, checked. Raises BadInput for anything that this machine does not have."""
    device_map, folder = options.get("device_map"), options.get("offload_folder")
    device = resolve_device(options.get("device", "cpu")) if device_map is None else _mapped_device(device_map, folder)
    dtype = resolve_dtype(options.get("dtype"), device)
    attention = options.get("attn_implementation", "sdpa")
    check_attention(attention, device)
    quantization = _quantization(device, dtype, options.get("load_8bit", False), options.get("load_4bit", False))
    return Placement(device, dtype, attention, device_map, None if folder is None else Path(folder), quantization)


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


def resolve_dtype(dtype: str | torch.dtype | None, device: torch.device) -> str | torch.dtype:
    """The torch dtype of that name, or "auto". None: float16 on CUDA, float32 elsewhere. Raises BadInput."""
    if dtype is None:
        return torch.float16 if device.type == "cuda" else torch.float32
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise BadInput(f"the dtype must be one of {', '.join(DTYPES)}, got {shown(name)}")
    return name if name == "auto" else cast(torch.dtype, getattr(torch, name))


def check_attention(attn_implementation: str, device: torch.device) -> None:
    """Raise BadInput unless that attention implementation is known and runs on `device`."""
    if attn_implementation not in ATTENTIONS:
        raise BadInput(f"attention must be one of {', '.join(ATTENTIONS)}, got {shown(attn_implementation)}")
    if attn_implementation == "flash_attention_2" and not (device.type == "cuda" and is_flash_attn_2_available()):
        raise BadInput(
            f"flash_attention_2 needs a CUDA device and the package flash-attn, got {device}, "
            f"package {'there' if is_flash_attn_2_available() else 'missing'}"
        )


def check_device_map(device_map: DeviceMap, model: nn.Module) -> None:
    """Raise BadInput unless a map by module names places every parameter of `model` once and names nothing else."""
    if isinstance(device_map, str):
        return
    parameters = [name for name, _ in model.named_parameters()]
    tensors = [*parameters, *(name for name, _ in model.named_buffers())]
    stray = [key for key in device_map if not any(_holds(key, name) for name in tensors)]
    if stray:
        raise BadInput(f"the device map must name modules of the model, got {shown(stray[0])}")
    for name in parameters:
        keys = [key for key in device_map if _holds(key, name)]
        if len(keys) != 1:
            got = " and ".join(shown(key) for key in keys) or "none"
            raise BadInput(f"the device map must place every parameter once, got {got} for {name}")


def _holds(module: str, name: str) -> bool:
    return module in ("", name) or name.startswith(f"{module}.")


def _mapped_device(device_map: DeviceMap, offload_folder: str | Path | None) -> torch.device:
    """The first CUDA device of a device map, else the CPU."""
    if not is_accelerate_available():
        raise BadInput("a device map needs the package accelerate, which is missing or too old")
    if isinstance(device_map, str):
        if device_map not in _DEVICE_MAPS:
            raise BadInput(
                f"the device map must be one of {', '.join(_DEVICE_MAPS)} or name a device for each module, "
                f"got {shown(device_map)}"
            )
        return resolve_device("auto")
    places = [f"cuda:{place}" if isinstance(place, int) else str(place) for place in device_map.values()]
    if "disk" in places and offload_folder is None:
        raise BadInput('a device map with "disk" needs an offload_folder, got none')
    devices = [resolve_device(place) for place in places if place != "disk"]
    return next((device for device in devices if device.type == "cuda"), torch.device("cpu"))


def _quantization(
    device: torch.device, dtype: str | torch.dtype, load_8bit: bool, load_4bit: bool
) -> BitsAndBytesConfig | None:
    if not (load_8bit or load_4bit):
        return None
    if load_8bit and load_4bit:
        raise BadInput("a model is loaded in 8 bit or in 4 bit, got both")
    packages = {"bitsandbytes": is_bitsandbytes_available(), "accelerate": is_accelerate_available()}
    missing = [name for name, there in packages.items() if not there]
    if device.type != "cuda" or missing:
        raise BadInput(
            f"loading in {8 if load_8bit else 4} bit needs a CUDA device and the packages {' and '.join(packages)}, "
            f"got {device}, {' and '.join(missing) or 'no package'} missing"
        )
    if load_8bit:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(_NOT_QUANTISED))
    return BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=list(_NOT_QUANTISED),
        bnb_4bit_compute_dtype=torch.float16 if dtype == "auto" else dtype,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
    )


def _written(model: Any) -> str:
    return shown({name: str(place) for name, place in getattr(model, "hf_device_map", {}).items()})
