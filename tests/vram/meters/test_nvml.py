"""The driver's count of this process: found, told and refused, against a stand-in for NVML."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import vram
from vram.meters.nvml import Identity, NvmlMeter, this_process
from vram.meters.tensor import TensorMeter

MiB = 2**20
ME, OTHER = 4242, 77
UUID = "11111111-2222-3333-4444-555555555555"


class NVMLError(Exception):
    pass


class NotFound(NVMLError):
    pass


class NotSupported(NVMLError):
    pass


class FakeNvml:
    """The module pynvml as far as the meter asks it: one device, and bytes by PID (None: not told)."""

    NVMLError = NVMLError
    NVMLError_NotFound = NotFound
    NVMLError_InvalidArgument = NotFound
    NVMLError_NotSupported = NotSupported
    NVMLError_FunctionNotFound = NotSupported

    def __init__(self, compute: dict[int, int | None], *, name: str = f"GPU-{UUID}") -> None:
        self.compute, self.name = compute, name
        self.graphics: dict[int, int | None] = {}
        self.used = 900 * MiB
        self.mig: list[int] | None = None  # None: a GPU that can't be cut
        self.failing: dict[str, NVMLError] = {}
        self.open = 0

    def __getattribute__(self, name: str) -> Any:
        failing = {} if name.startswith("_") else object.__getattribute__(self, "failing")
        if name in failing:
            raise failing[name]
        return object.__getattribute__(self, name)

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's names, here and below
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "560.35.03"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid != self.name:
            raise NotFound("Not Found")
        return "the device"

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[SimpleNamespace]:  # noqa: N802
        return self._processes(handle, self.compute)

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: str) -> list[SimpleNamespace]:  # noqa: N802
        return self._processes(handle, self.graphics)

    def nvmlDeviceGetMPSComputeRunningProcesses(self, handle: str) -> list[SimpleNamespace]:  # noqa: N802
        raise NotSupported("Not Supported")

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:  # noqa: N802
        assert handle == "the device"
        return SimpleNamespace(used=self.used)

    def nvmlDeviceGetMigMode(self, handle: str) -> list[int]:  # noqa: N802
        if self.mig is None:
            raise NotSupported("Not Supported")
        return self.mig

    def _processes(self, handle: str, told: dict[int, int | None]) -> list[SimpleNamespace]:
        assert handle == "the device"
        return [SimpleNamespace(pid=pid, usedGpuMemory=n_bytes) for pid, n_bytes in told.items()]


class FakeCuda:
    """`torch.cuda` with two devices, of which only cuda:1 has the UUID that NVML knows."""

    def __init__(self) -> None:
        self.waited: list[torch.device] = []
        self.reserved = 64 * MiB

    def current_device(self) -> int:
        return 1

    def get_device_properties(self, device: torch.device) -> SimpleNamespace:
        return SimpleNamespace(uuid=UUID if device.index == 1 else "0")

    def synchronize(self, device: torch.device) -> None:
        self.waited.append(device)

    def memory_stats_as_nested_dict(self, device: torch.device) -> dict[str, Any]:
        assert device.index == 1
        return {"reserved_bytes": {"all": {"current": self.reserved}}} if self.reserved else {}


def meter_of(nvml: FakeNvml, *, contained: bool = False, pids: tuple[int, ...] = (ME,), **other: Any) -> NvmlMeter:
    return NvmlMeter(**{"nvml": nvml, "cuda": FakeCuda(), "identity": Identity(pids, contained), **other})


def test_the_driver_counts_this_process_alone() -> None:
    """Own bytes by PID, however much another process takes or gives back meanwhile."""
    nvml = FakeNvml({OTHER: 5000 * MiB, ME: 400 * MiB})
    with meter_of(nvml) as meter:
        assert meter.read() == {"driver": 400 * MiB}
        nvml.compute = {ME: 402 * MiB, 78: 9000 * MiB}
        assert meter.read() == {"driver": 402 * MiB}
        assert meter.absent == {}
        assert meter.facts == {"driver": "560.35.03", "driver_bytes": "of this process"}


def test_a_process_that_computes_and_draws_counts_once() -> None:
    """It is in two lists with the same bytes."""
    nvml = FakeNvml({ME: 400 * MiB})
    nvml.graphics = {ME: 400 * MiB}
    with meter_of(nvml) as meter:
        assert meter.read() == {"driver": 400 * MiB}


@pytest.mark.parametrize("kind", ["GPU-", "MIG-"])
def test_the_device_is_found_by_uuid(kind: str) -> None:
    """torch's numbers are not NVML's where CUDA_VISIBLE_DEVICES renumbers; a MIG slice has a UUID of its own."""
    with meter_of(FakeNvml({ME: 400 * MiB}, name=kind + UUID)) as meter:
        assert meter.read() == {"driver": 400 * MiB}
        assert meter.source == "NVML of cuda:1"


def test_a_device_that_nvml_does_not_know_is_absent() -> None:
    """Rather than another device's figure: the reason names the UUID."""
    with meter_of(FakeNvml({ME: 400 * MiB}, name="GPU-other")) as meter:
        assert meter.read() == {}
        assert UUID in meter.absent["driver"]


def test_the_context_is_made_before_the_process_is_looked_for() -> None:
    """Without one the driver does not list the process yet."""
    nvml, cuda = FakeNvml({}), FakeCuda()

    def make_context(device: torch.device) -> None:
        nvml.compute[ME] = 400 * MiB

    cuda.synchronize = make_context  # type: ignore[method-assign]
    with meter_of(nvml, cuda=cuda) as meter:
        assert meter.read() == {"driver": 400 * MiB}


def test_in_a_container_the_pid_outside_is_tried_first() -> None:
    """Where /proc tells the host's PID, a process outside that has the inner PID's number is not taken for this one."""
    nvml = FakeNvml({1: 7000 * MiB, 31337: 400 * MiB})
    with meter_of(nvml, contained=True, pids=(31337, 1)) as meter:
        assert meter.read() == {"driver": 400 * MiB}


def test_in_a_container_the_only_process_is_this_one() -> None:
    """The process is found by a PID that means nothing here; from then on it is followed, and others may come."""
    nvml = FakeNvml({31337: 400 * MiB})
    with meter_of(nvml, contained=True) as meter:
        assert meter.read() == {"driver": 400 * MiB}
        nvml.compute[31338] = 9000 * MiB
        assert meter.read() == {"driver": 400 * MiB}


def test_in_a_container_with_others_nobody_can_tell() -> None:
    """Two foreign PIDs: absent, with what to do about it."""
    with meter_of(FakeNvml({31337: 400 * MiB, 31338: 400 * MiB}), contained=True) as meter:
        assert meter.read() == {}
        assert "31337, 31338" in meter.absent["driver"]
        assert "--pid=host" in meter.absent["driver"]


def test_outside_of_a_container_a_foreign_process_is_never_this_one() -> None:
    """The only process listed is somebody else's: absent."""
    with meter_of(FakeNvml({OTHER: 400 * MiB})) as meter:
        assert meter.read() == {}
        assert f"lists {OTHER}" in meter.absent["driver"]


def test_an_empty_list_is_absent() -> None:
    """Never 0."""
    with meter_of(FakeNvml({}), contained=True) as meter:
        assert meter.read() == {}
        assert "lists no process" in meter.absent["driver"]


@pytest.mark.parametrize("told", [0, 63 * MiB, None])
def test_bytes_that_cannot_be_this_process_are_refused(told: int | None) -> None:
    """Some drivers tell 0 in containers; a PID may be another process's outside: less than torch reserved is wrong."""
    with meter_of(FakeNvml({ME: told}), contained=True) as meter:
        assert meter.read() == {}
        assert "without its bytes" in meter.absent["driver"]


@pytest.mark.parametrize("mig", [None, [0, 0]])
def test_without_figures_by_process_the_device_is_read_where_this_one_is_alone(mig: list[int] | None) -> None:
    """Windows, vGPU, some MIG slices: no other process is on the device, so it moves by this one's bytes."""
    nvml = FakeNvml({ME: None})
    nvml.mig = mig
    with meter_of(nvml) as meter:
        assert meter.read() == {"driver": 900 * MiB}
        nvml.used += 8 * MiB
        assert meter.read() == {"driver": 908 * MiB}
        assert meter.facts["driver_bytes"] == "of the whole device"


def test_without_figures_by_process_a_cotenant_is_no_start() -> None:
    """Two processes, one figure: absent. The other one may only be drawing."""
    nvml = FakeNvml({ME: None})
    nvml.graphics = {OTHER: None}
    with meter_of(nvml) as meter:
        assert meter.read() == {}
        assert "2 processes are on cuda:1" in meter.absent["driver"]


def test_without_figures_by_process_a_gpu_cut_by_mig_is_absent() -> None:
    """The whole GPU's figure is of all its slices."""
    nvml = FakeNvml({ME: None})
    nvml.mig = [1, 1]
    with meter_of(nvml) as meter:
        assert meter.read() == {}
        assert "MIG" in meter.absent["driver"]


def test_a_cotenant_that_comes_later_spoils_the_device_for_good() -> None:
    """From the reading that sees it on nothing is told, also once it has gone."""
    nvml = FakeNvml({ME: None})
    with meter_of(nvml) as meter:
        assert meter.read() == {"driver": 900 * MiB}
        nvml.compute[OTHER] = None
        assert meter.read() == {}
        del nvml.compute[OTHER]
        assert meter.read() == {}
        assert f"others on it: {OTHER}" in meter.absent["driver"]


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("nvmlInit", NVMLError("NVML Shared Library Not Found")),
        ("nvmlInit", NVMLError("Driver Not Loaded")),
        ("nvmlDeviceGetHandleByUUID", NVMLError("Insufficient Permissions")),
        ("nvmlDeviceGetComputeRunningProcesses", NotSupported("Not Supported")),
    ],
)
def test_what_nvml_refuses_at_the_start_is_the_reason(call: str, error: NVMLError) -> None:
    """No library, no driver, no permission, no such function: absent in NVML's words, and closed again."""
    nvml = FakeNvml({ME: 400 * MiB})
    nvml.failing = {call: error}
    with meter_of(nvml) as meter:
        assert meter.read() == {}
        assert meter.absent == {"driver": f"NVML: {error}"}
    assert nvml.open == 0


@pytest.mark.parametrize("told", [{}, {ME: 1 * MiB}, {ME: None}])
def test_figures_that_stop_are_absent_from_then_on(told: dict[int, int | None]) -> None:
    """The process is listed no more, or with bytes that can't be: the channel is lost and says so."""
    nvml = FakeNvml({ME: 400 * MiB})
    with meter_of(nvml) as meter:
        assert meter.read() != {}
        nvml.compute = told
        assert meter.read() == {}
        assert "stopped reporting" in meter.absent["driver"]


def test_an_error_during_the_replay_is_the_reason() -> None:
    """A GPU that fell off the bus does not end the run."""
    nvml = FakeNvml({ME: 400 * MiB})
    with meter_of(nvml) as meter:
        nvml.failing = {"nvmlDeviceGetComputeRunningProcesses": NVMLError("GPU is lost")}
        assert meter.read() == {}
        assert "GPU is lost" in meter.absent["driver"]


def test_a_meter_can_be_used_again() -> None:
    """A fault that spoiled one replay does not spoil the next; NVML is closed as often as it was opened."""
    nvml = FakeNvml({})
    meter = meter_of(nvml)
    with meter:
        assert meter.read() == {}
    nvml.compute = {ME: 400 * MiB}
    with meter:
        assert meter.read() == {"driver": 400 * MiB}
        assert nvml.open == 1
    assert nvml.open == 0


def test_without_the_library_it_is_absent_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """nvidia-ml-py is optional; a header line can tell before anything is measured."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    meter = NvmlMeter("cuda:1", cuda=FakeCuda())
    assert meter.absent == {"driver": "nvidia-ml-py is not installed (pip install 'himap-vram[meters]')"}
    with meter:
        assert meter.read() == {}


def test_on_rocm_nvml_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """AMD's driver is not NVIDIA's, though torch calls its devices cuda."""
    monkeypatch.setattr(torch.version, "hip", "6.4")
    nvml = FakeNvml({ME: 400 * MiB})
    with meter_of(nvml) as meter:
        assert meter.read() == {}
        assert "ROCm" in meter.absent["driver"]
    assert nvml.open == 0


def test_the_driver_never_decides_and_is_read_with_its_granule() -> None:
    """Noisy: 2 MiB of tolerance."""
    meter = meter_of(FakeNvml({}))
    assert meter.exact == frozenset()
    assert meter.tolerance_bytes == {"driver": 2 * MiB}


def recorded(nvml: FakeNvml, step: Callable[[int], None]) -> vram.Recording:
    return vram.replay(step, range(4), laps=3, meters=[TensorMeter(), meter_of(nvml)])


def test_a_recording_has_the_driver_beside_the_exact_channels() -> None:
    """Read at every sample, not at marks; absent on a CPU, as the other meter says, is overruled by who reads it."""
    nvml = FakeNvml({ME: 400 * MiB})

    def step(_: int) -> None:
        nvml.compute = {ME: (nvml.compute[ME] or 0) + MiB}
        vram.mark("token")

    recording = recorded(nvml, step)
    expected = [[(400 + lap * 4 + sample + 1) * MiB for sample in range(4)] for lap in range(recording.laps)]
    assert recording.channels["driver"].tolist() == expected
    assert recording.tolerance_bytes["driver"] == 2 * MiB
    assert "driver" not in recording.absent
    assert "requested" in recording.marks["token"]
    assert "driver" not in recording.marks["token"]
    assert recording.environment["driver"] == "560.35.03"
    assert recording.environment["source"] == "CPU tensors"


def test_a_channel_lost_on_the_way_is_inconclusive() -> None:
    """A co-tenant in lap 1: all of the driver's figures go, the reason stays, and the other channels are judged."""
    nvml = FakeNvml({ME: None})
    runs = iter(range(12))

    def step(_: int) -> None:
        nvml.compute = {ME: None, OTHER: None} if next(runs) == 5 else {ME: None}
        torch.zeros(1)

    recording = recorded(nvml, step)
    assert "driver" not in recording.channels
    assert "driver" not in recording.before
    assert "others on it" in recording.absent["driver"]
    with pytest.raises(vram.Inconclusive, match=r"driver was not measured: .*others on it"):
        vram.assert_peak(recording, "1 GiB", "driver")
    vram.assert_stable(recording)


class Reserving(TensorMeter):
    """Whose `reserved` is what the driver counts beyond 300 MiB."""

    def __init__(self, nvml: FakeNvml) -> None:
        super().__init__()
        self._nvml = nvml

    def read(self) -> dict[str, int]:
        return super().read() | {"reserved": (self._nvml.compute[ME] or 0) - 300 * MiB}


def test_bytes_taken_past_pytorch_convict() -> None:
    """Raw cudaMalloc, 4 MiB a sample and never given back: growth, on the driver's word alone."""
    nvml = FakeNvml({ME: 400 * MiB})

    def step(_: int) -> None:
        nvml.compute = {ME: (nvml.compute[ME] or 0) + 4 * MiB}

    recording = vram.replay(step, range(10), meters=[TensorMeter(), meter_of(nvml)])
    assert recording.laps > 10  # it was suspected, and replayed
    with pytest.raises(vram.MemoryGrowth, match=r"not PyTorch's \(driver\) grows by 4,194,304 B a sample"):
        vram.assert_stable(recording)


def test_what_the_allocator_reserves_is_not_the_driver_s_growth() -> None:
    """The same bytes, all of them PyTorch's: judged as `reserved`, which does not convict."""
    nvml = FakeNvml({ME: 400 * MiB})

    def step(_: int) -> None:
        nvml.compute = {ME: (nvml.compute[ME] or 0) + 4 * MiB}
        torch.zeros(1)

    recording = vram.replay(step, range(10), meters=[Reserving(nvml), meter_of(nvml)])
    vram.assert_stable(recording)
    assert vram.verdicts(recording)["driver"].status == "stable"


def test_the_whole_device_never_convicts() -> None:
    """The driver does not tell whose bytes they are: told, and no more."""
    nvml = FakeNvml({ME: None})

    def step(_: int) -> None:
        nvml.used += 4 * MiB
        torch.zeros(1)

    recording = vram.replay(step, range(10), laps=20, meters=[TensorMeter(), meter_of(nvml)])
    vram.assert_stable(recording)
    assert vram.verdicts(recording)["driver"].bytes_per_sample == 4 * MiB


def test_which_process_this_is(tmp_path: Path) -> None:
    """The PID and the namespace are the kernel's; a /proc of the host tells the outer PID, and it comes first."""
    status, namespace = tmp_path / "status", tmp_path / "pid"
    status.write_text(f"Name:\tpython\nNSpid:\t31337\t{os.getpid()}\n")
    namespace.symlink_to("pid:[4026532999]")
    assert this_process(status, namespace) == Identity((31337, os.getpid()), contained=True)
    status.write_text(f"NSpid:\t{os.getpid()}\n")
    namespace.unlink()
    namespace.symlink_to("pid:[4026531836]")
    assert this_process(status, namespace) == Identity((os.getpid(),), contained=False)


def test_which_process_this_is_without_proc(tmp_path: Path) -> None:
    """Windows has no namespaces; a Linux that hides them may hide other processes too."""
    nowhere = tmp_path / "nowhere"
    assert this_process(nowhere, nowhere, "win32") == Identity((os.getpid(),), contained=False)
    assert this_process(nowhere, nowhere, "linux") == Identity((os.getpid(),), contained=True)


def test_the_stand_in_has_the_names_of_the_real_library() -> None:
    """Every function and error that the meter asks for exists in nvidia-ml-py."""
    pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    for name in vars(FakeNvml):
        if name.lower().startswith("nvml"):
            assert hasattr(pynvml, name), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_nvml_on_a_real_card() -> None:
    """64 MiB taken past the allocator's cache are 64 MiB more for the driver, to its granule; or the reason is told."""
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    with NvmlMeter("cuda:0") as meter:
        before = meter.read()
        if meter.absent:
            pytest.skip(meter.absent["driver"])
        torch.cuda.empty_cache()
        kept = torch.zeros(64 * MiB, dtype=torch.uint8, device="cuda:0")
        meter.synchronize()
        grown = meter.read()["driver"] - before["driver"]
    assert kept.nbytes - 2 * MiB <= grown <= kept.nbytes + 4 * MiB
