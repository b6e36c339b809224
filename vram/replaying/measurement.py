"""One stretch of work: how much is alive now, and how much was at most."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vram.meters import Meter, default_meter, remarks_of


class Measurement:
    """Live and peak bytes since `measure` began (absolute: what was alive before counts). Keeps its last figures."""

    def __init__(self, meter: Meter) -> None:
        self._meter: Meter | None = meter
        self._figures: dict[str, int] = meter.read()
        self.before_bytes = self._figures["requested"]
        self.source, self.device = meter.source, meter.device
        self._remarks: tuple[str, ...] = ()

    @property
    def live_bytes(self) -> int:
        """Bytes requested and alive now, or when the block ended."""
        return self._read()["requested"]

    @property
    def peak_bytes(self) -> int:
        """The most bytes requested at once since the block began."""
        return self._read()["requested_peak"]

    @property
    def nothing_allocated(self) -> bool:
        """Whether nothing was taken or given back on the device: the block may have worked on another."""
        return self.peak_bytes == self.live_bytes == self.before_bytes

    @property
    def remarks(self) -> tuple[str, ...]:
        """Lines on what a simulation assumed for the peak, and does not count at it."""
        return self._remarks if self._meter is None else remarks_of(self._meter, self.peak_bytes)

    def _read(self) -> dict[str, int]:
        if self._meter is not None:
            self._figures = self._meter.read()
        return self._figures

    def _finish(self) -> None:
        self._remarks = self.remarks
        self._meter = None


@contextmanager
def measure(device: str = "auto") -> Iterator[Measurement]:
    """`with vram.measure() as m:` then `m.peak_bytes`, `m.live_bytes`, `m.before_bytes`. Devices as in `replay`.

    Replays and measurements inside the block count for its peak. On a real GPU `torch.cuda.reset_peak_memory_stats`
    inside it hides what was needed before.
    """
    with measured_by(default_meter(device)) as measurement:
        yield measurement


@contextmanager
def measured_by(meter: Meter) -> Iterator[Measurement]:
    """As `measure`, by a meter that has not been entered."""
    with meter, meter.watching():
        meter.reset_peak()
        measurement = Measurement(meter)
        try:
            yield measurement
        finally:
            meter.synchronize()
            measurement._finish()
