"""A recording: all readings of one replay, frozen. Data flows meter -> Recording -> verdict -> report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from vram.escaping import shown

Int64: TypeAlias = npt.NDArray[np.int64]
# One array of readings, in order, per sample, per lap: marks[lap][sample] -> int64 (times reached,).
MarkReadings: TypeAlias = tuple[tuple[Int64, ...], ...]


# Most telling first. Live before peak, as peaks follow what is alive; requested before allocated, as blocks follow
# requests.
CHANNELS = ("requested", "requested_peak", "allocated", "allocated_peak", "reserved", "driver", "host")
_PEAK = "_peak"


@dataclass(frozen=True, repr=False)
class Recording:
    """Readings of `laps` passes over the same `samples`, warm-up laps included.

    `channels` maps a channel to int64 bytes (laps, samples), read after each sample, absolute. `before` holds the one
    reading taken before sample 0. `marks[name][channel][lap][sample]` are the readings taken at `vram.mark(name)`.
    `exact` names the channels that give the same bytes on every replay. `absent` maps a channel that could not be read
    to the reason; it has no figures, never 0. `seconds` (laps, samples) is the wall time of each step.

    `device` is where the exact channels count, as `vram.meters.resolve_device` names it. `allocates` is False where the
    step was said to need no memory there. `cache_budget_bytes` is what a declared bounded cache may fill. `stopped`
    names the limit that ended the replay before the rule had decided ("stopped after 60 s"), "" where none did; what
    ran of the last lap is left out, but of the first, where `not_run` samples are missing. `garbage_bytes` (laps,
    samples) is what only the garbage collector freed of each sample, on the exact channels, None where none is
    measured; `garbage_kinds` says what it was. `remarks` are lines that go with the figures: what a simulation assumed,
    and what it does not count.
    """

    name: str
    channels: Mapping[str, Int64]
    before: Mapping[str, int]
    exact: frozenset[str]
    tolerance_bytes: Mapping[str, int]
    absent: Mapping[str, str]
    marks: Mapping[str, Mapping[str, MarkReadings]]
    environment: Mapping[str, object]
    seconds: npt.NDArray[np.float64]
    warmup_laps: int
    base_laps: int = field(default=5)
    device: str = ""
    allocates: bool = True
    cache_budget_bytes: int = 0
    stopped: str = ""
    not_run: int = 0
    garbage_bytes: Int64 | None = None
    garbage_kinds: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    def __repr__(self) -> str:
        # The figures would fill the screen of every failing test that holds a recording.
        return f"<Recording {self.name!r}: {self.laps} laps of {self.samples} samples, {', '.join(self.channels)}>"

    def __post_init__(self) -> None:
        garbage = () if self.garbage_bytes is None else (self.garbage_bytes,)
        for figures in (*self.channels.values(), self.seconds, *garbage):
            figures.flags.writeable = False
        for name in ("channels", "before", "tolerance_bytes", "absent", "marks", "environment"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    @property
    def laps(self) -> int:
        """How often the samples were passed over, warm-up included."""
        return int(self.seconds.shape[0])

    @property
    def samples(self) -> int:
        """How many samples one lap has."""
        return int(self.seconds.shape[1])

    @property
    def runs(self) -> int:
        """Laps x samples."""
        return int(self.seconds.size)

    @property
    def nothing_allocated(self) -> str:
        """Why the figures say nothing of the step: no sample took memory on `device`; "" where one did, or need not.

        Then every exact reading, and every sample's peak, is what was alive before sample 0. Without an exact peak, or
        with a device that is not known, nobody can say.
        """
        exact = [channel for channel in self.exact if channel in self.channels]
        if not self.allocates or not self.device or not any(channel.endswith(_PEAK) for channel in exact):
            return ""
        alive = {channel: self.before.get(channel.removesuffix(_PEAK), self.before[channel]) for channel in exact}
        if any((self.channels[channel] != n_bytes).any() for channel, n_bytes in alive.items()):
            return ""
        return nothing_allocated_text(self.device, "in any sample", "replay it with allocates=False")

    @property
    def most_garbage_bytes(self) -> int | None:
        """The most bytes of one sample that only the collector freed, after warm-up; None where not measured."""
        return max(self.garbage_by_sample, default=None)

    @property
    def garbage_by_sample(self) -> list[int]:
        """The most of each sample that only the collector freed, after warm-up; empty where it was not measured."""
        if self.garbage_bytes is None:
            return []
        judged = self.garbage_bytes[self.warmup_laps :] if self.laps > self.warmup_laps else self.garbage_bytes
        return [int(n_bytes) for n_bytes in judged.max(axis=0)]

    def unseen(self, channel: str) -> str:
        """Why `channel` does not say what the samples need; "" where it does."""
        if self.not_run:
            return f"{self.stopped}: {self.not_run:,} of {self.samples + self.not_run:,} samples did not run"
        # The driver and the host have figures of their own, wherever tensors are.
        return "" if channel in ("driver", "host") else self.nothing_allocated

    @property
    def title(self) -> str:
        """The name as messages show it: in one line, and printable."""
        return shown(self.name)

    def start_bytes(self, channel: str = "requested_peak") -> int:
        """Bytes before the first sample: of a peak what was alive then. Raises KeyError where it was not measured."""
        return self.before.get(channel.removesuffix("_peak"), self.before[channel])

    def besides_bytes(self, channel: str, besides_bytes: int = 0, *, above_start: bool = False) -> int:
        """Bytes that a limit leaves out: those given, or with `above_start` all that was alive before the first sample.

        Raises ValueError where both are asked for: the first are among the second.
        """
        if above_start and besides_bytes:
            raise ValueError(f"give besides_bytes or above_start, not both, got {besides_bytes:,} B and True")
        return self.start_bytes(channel) if above_start and channel in self.before else besides_bytes

    def peak_bytes(self, channel: str = "requested_peak") -> int:
        """The highest reading of `channel` over all laps and samples. Raises KeyError, with the reason, if absent."""
        if channel not in self.channels:
            raise KeyError(f"{channel} was not measured: {self.absent.get(channel, 'no meter reads it')}")
        return int(self.channels[channel].max())


def is_live(channel: str) -> bool:
    """Whether a channel counts bytes requested and alive: "requested", "cuda:1 requested"."""
    return channel.rpartition(" ")[2] == "requested"


def nothing_allocated_text(device: str, where: str, otherwise: str) -> str:
    """The words for work that took no memory on the device measured, and the two ways out."""
    place = f"cuda:0 of {device}" if device.startswith("simulated") else device
    return (
        f"nothing was allocated on {place} {where}: are model and samples on `vram.torch_device`? "
        f"Where that is as it should be, {otherwise}"
    )


def check_recording(recording: object, channel: str | None = None) -> None:
    """Raise TypeError for what is no recording, ValueError for a channel that neither it nor any meter knows."""
    if not isinstance(recording, Recording):
        raise TypeError(f"a recording must be what `vram.replay` returned, got {recording!r}")
    known = dict.fromkeys((*CHANNELS, *recording.channels, *recording.absent))
    if channel is not None and channel not in known:
        raise ValueError(f"channel must be one of {', '.join(known)}, got {channel!r}")
