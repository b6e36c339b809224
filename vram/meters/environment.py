"""Where a recording was made: what must be equal for two recordings to be comparable."""

from __future__ import annotations

import platform
from collections.abc import Sequence

import torch

from vram.meters import Meter


def environment(meters: Sequence[Meter]) -> dict[str, object]:
    """Python, torch and platform, the source of the exact channels, and what the meters know of their device.

    On CUDA that is the device with its size and compute capability, the allocator's settings and the driver.
    """
    deciding = [meter for meter in meters if meter.exact] or meters
    facts: dict[str, object] = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # it is a str subclass that other tools cannot serialise
        "platform": f"{platform.system()} {platform.machine()}",
        "source": ", ".join(meter.source for meter in deciding),
    }
    for meter in meters:
        facts |= meter.facts
    return facts
