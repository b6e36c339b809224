"""The meter of XPU and MPS, on a stand-in for `torch.accelerator`: no such device was at hand."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import vram
from vram.meters import base, default_meters, resolve_device
from vram.meters.accelerator import AcceleratorMeter

MiB = 2**20


class Accelerator:
    """`torch.accelerator`, as far as the meter calls it. Blocks are of whole 512 B, segments of 2 MiB."""

    def __init__(self, kind: str = "xpu", *, counted: tuple[str, ...] = ("requested", "allocated", "reserved")) -> None:
        self.device, self.counted = torch.device(kind), counted
        self.used = False
        self.figures: dict[str, list[int]] = {name: [0, 0] for name in ("requested", "allocated", "reserved")}
        self.waited = 0

    def current_accelerator(self, check_available: bool = False) -> torch.device:
        return self.device

    def current_device_index(self) -> int:
        return 0

    def device_count(self) -> int:
        return 2

    def synchronize(self, index: int) -> None:
        self.waited += 1

    def get_memory_info(self, index: int) -> tuple[int, int]:
        return 3 * 2**30, 4 * 2**30

    def take(self, n_bytes: int) -> None:
        self.used = True
        blocks = (abs(n_bytes) + 511) // 512 * (512 if n_bytes > 0 else -512)
        for name, size in (("requested", n_bytes), ("allocated", blocks)):
            now, peak = self.figures[name]
            self.figures[name] = [now + size, max(peak, now + size)]
        segments = (self.figures["allocated"][0] + 2 * MiB - 1) // (2 * MiB)
        reserved = max(self.figures["reserved"][0], segments * 2 * MiB)
        self.figures["reserved"] = [reserved, reserved]

    def memory_stats(self, index: int) -> dict[str, int]:
        if not self.used:
            return {}
        return {
            f"{name}_bytes.all.{which}": value
            for name in self.counted
            for which, value in zip(("current", "peak"), self.figures[name], strict=True)
        }

    def reset_peak_memory_stats(self, index: int) -> None:
        self.figures = {name: [now, now] for name, (now, _) in self.figures.items()}


def test_an_accelerator_s_figures_are_read_by_channel() -> None:
    """Requested as asked for, allocated in blocks, reserved in segments; 0 only before the first allocation."""
    stand_in = Accelerator()
    with AcceleratorMeter("xpu", accelerator=stand_in) as meter, meter.watching():
        channels = ("requested", "requested_peak", "allocated", "allocated_peak", "reserved")
        assert meter.read() == dict.fromkeys(channels, 0)
        stand_in.take(1000)
        stand_in.take(3000)
        stand_in.take(-3000)
        meter.synchronize()
        assert meter.read() == dict(zip(channels, (1000, 4000, 1024, 4096, 2 * MiB), strict=True))
        meter.reset_peak()
        assert meter.read()["requested_peak"] == 1000
    assert stand_in.waited == 1
    assert (meter.source, meter.device) == ("XPU allocator of xpu:0", "xpu:0")
    assert meter.facts == {"device": "xpu:0", "allocator": "default", "device_bytes": 4 * 2**30}


def test_a_reset_leaves_the_peaks_of_other_meters_that_run() -> None:
    """A measurement around a replay keeps its peak, though the allocator has one for all."""
    stand_in = Accelerator()
    with AcceleratorMeter(accelerator=stand_in) as around:
        around.reset_peak()
        stand_in.take(5000)
        stand_in.take(-5000)
        with AcceleratorMeter(accelerator=stand_in) as within:
            within.reset_peak()
            stand_in.take(700)
            assert within.read()["requested_peak"] == 700
        assert around.read()["requested_peak"] == 5000


def test_growth_on_an_accelerator_is_found_and_a_steady_run_is_stable() -> None:
    """The exact channel decides, as on CUDA."""
    stand_in = Accelerator()

    def steady(n: int) -> None:
        stand_in.take(n)
        stand_in.take(-n)

    meter = AcceleratorMeter(accelerator=stand_in)
    vram.assert_stable(vram.replay(steady, [1000, 2000], meters=[meter]))
    recording = vram.replay(stand_in.take, [1000, 2000], meters=[meter])
    assert vram.verdicts(recording)["requested"].status == "grows"
    assert vram.verdicts(recording)["requested"].bytes_per_sample == 1500


@pytest.mark.parametrize("kept_at_0", [True, False])
def test_a_statistic_that_the_allocator_does_not_count_is_absent(kept_at_0: bool) -> None:
    """Left out, or 0 beside blocks that are alive: a figure of 0 would pass every check. Growth is inconclusive."""
    stand_in = Accelerator("mps", counted=("requested", "allocated", "reserved") if kept_at_0 else ("allocated",))

    def step(n: int) -> None:
        stand_in.take(n)
        if kept_at_0:
            stand_in.figures["requested"] = [0, 0]

    recording = vram.replay(step, [1000], meters=[AcceleratorMeter("mps", accelerator=stand_in)])
    assert {"requested", "requested_peak"}.isdisjoint(recording.channels)
    assert recording.absent["requested"] == "this allocator does not count it"
    assert recording.peak_bytes("allocated_peak") > 0
    with pytest.raises(vram.Inconclusive, match="no exact channel"):
        vram.assert_stable(recording)


def no_functions() -> Any:
    return SimpleNamespace(current_device_index=lambda: 0, synchronize=lambda index: None)


def not_implemented() -> Any:
    def memory_stats(index: int) -> dict[str, int]:
        raise RuntimeError("Allocator for mps is not a DeviceAllocator.\nException raised from ...")

    return SimpleNamespace(**vars(no_functions()), memory_stats=memory_stats)


@pytest.mark.parametrize("build", [no_functions, not_implemented])
def test_a_torch_without_these_statistics_says_so(build: Callable[[], Any]) -> None:
    """Every channel is absent, with torch's release and its first line; nothing is read, and nothing raised."""
    with AcceleratorMeter("mps", accelerator=build()) as meter:
        meter.reset_peak()
        assert meter.read() == {}
        assert meter.absent["requested"].startswith(f"torch {torch.__version__} has no statistics of this allocator: ")
        assert "Exception raised" not in meter.absent["requested"]
        assert "device_bytes" not in meter.facts


@pytest.mark.parametrize("kind", ["xpu", "mps"])
def test_an_accelerator_is_measured_by_name_where_torch_runs_on_it(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own meter decides, and the host's memory is beside it. Elsewhere the message says what torch sees."""
    with pytest.raises(ValueError, match=f"device {kind} needs an accelerator of that kind, and torch sees"):
        resolve_device(kind)
    stand_in = Accelerator(kind)
    for name in ("current_accelerator", "current_device_index", "device_count"):
        monkeypatch.setattr(torch.accelerator, name, getattr(stand_in, name))
    assert resolve_device(kind) == kind
    sources = [meter.source for meter in default_meters(f"{kind}:1")]
    assert sources == [f"{kind.upper()} allocator of {kind}:1", "RSS of this process"]
    with pytest.raises(ValueError, match=f"device {kind}:2 does not exist: torch sees 2"):
        resolve_device(f"{kind}:2")


def test_every_registered_meter_has_what_the_registry_asks_of_its_file() -> None:
    """A new meter is one file and one line of METERS: the file offers `meter`, the first of a kind `resolve` too."""
    for kind in base.METERS:
        deciding, *others = base._modules(kind)
        assert callable(deciding.resolve)
        assert all(callable(module.meter) for module in (deciding, *others))
