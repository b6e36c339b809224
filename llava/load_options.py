"""Options of loading a model. Imports no torch, so that a command line can list the choices at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypedDict

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

DTYPES = ("float32", "float16", "bfloat16", "auto")
ATTENTIONS = ("sdpa", "eager", "flash_attention_2")
ASPECT_RATIOS = ("crop", "pad")

DeviceMap: TypeAlias = "str | Mapping[str, int | str | torch.device]"


class LoadOptions(TypedDict, total=False):
    """Keyword arguments of `load_pretrained_model`; each may be left out.

    - `device`: "cpu" (default), "cuda", "cuda:NUMBER", or "auto", which is CUDA if there is one.
    - `dtype`: a torch dtype or one of `DTYPES`; "auto" is the checkpoint's own. None (default): float16 on CUDA,
      float32 on the CPU.
    - `attn_implementation`: one of `ATTENTIONS` (default "sdpa").
    - `load_8bit`, `load_4bit`: quantise the decoder with bitsandbytes, on CUDA (default: neither).
    - `device_map`, as transformers takes it: spread the modules over devices, CPU and disk, in the place of `device`.
    - `offload_folder`: holds what a device map puts on the disk.
    """

    device: str | torch.device
    dtype: str | torch.dtype | None
    attn_implementation: str
    load_8bit: bool
    load_4bit: bool
    device_map: DeviceMap | None
    offload_folder: str | Path | None
