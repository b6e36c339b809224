"""Where a recording was made: what must be equal for two recordings to be comparable."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence

import torch

from vram.meters import Meter


def environment(meters: Sequence[Meter]) -> dict[str, object]:
    """Python, torch and platform; on CUDA also the device, its size and compute capability and allocator settings."""
    facts: dict[str, object] = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # it is a str subclass that other tools cannot serialise
        "platform": f"{platform.system()} {platform.machine()}",
        "source": ", ".join(meter.source for meter in meters),
    }
    if torch.cuda.is_available() and any("cuda" in meter.source for meter in meters):
        device = torch.cuda.get_device_properties(torch.cuda.current_device())
        facts |= {
            "device": device.name,
            "device_bytes": device.total_memory,
            "compute_capability": f"{device.major}.{device.minor}",
            "cuda": torch.version.cuda,
            "hip": torch.version.hip,
            "allocator": os.environ.get("PYTORCH_ALLOC_CONF") or os.environ.get("PYTORCH_CUDA_ALLOC_CONF") or "default",
        }
    return facts
