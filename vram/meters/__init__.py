"""One file per source of figures. A meter says what it cannot see."""

from vram.meters.base import Meter, default_meter, default_meters, remarks_of, resolve_device, torch_device

__all__ = ["Meter", "default_meter", "default_meters", "remarks_of", "resolve_device", "torch_device"]
