"""The driver's count of this process, through NVML."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import torch

from vram.extras import remedy
from vram.meters.cuda import reserved_bytes

_MIB = 2**20
_FIRST_NAMESPACE = "pid:[4026531836]"  # the kernel's fixed number of the PID namespace that it starts with
_PROCESSES = (
    "nvmlDeviceGetComputeRunningProcesses",
    "nvmlDeviceGetGraphicsRunningProcesses",
    "nvmlDeviceGetMPSComputeRunningProcesses",
)
_CONTAINER = "in a container it needs the host's PIDs (docker run --pid=host)"


@dataclass(frozen=True)
class Identity:
    """The PIDs by which the driver may know this process, likeliest first; whether a container may hide others."""

    pids: tuple[int, ...]
    contained: bool


class NvmlMeter:
    """The driver's count of this process's bytes on one GPU: allocator, CUDA context, libraries, raw cudaMalloc.

    The device is found by UUID, as CUDA_VISIBLE_DEVICES renumbers; the process by PID. In a container, where the driver
    may know it by another PID, the only process on the device is taken to be this one. Where the driver has no figures
    by process (some MIG and vGPU setups, Windows), the whole device is read instead, as long as no other process is on
    it. A figure below what PyTorch's allocator reserved is no figure of this process. Whatever does not hold, at the
    start or later, leaves `driver` absent with the reason.

    Blind to: who took the bytes, and other GPUs of the same process. Read as a whole device: to processes that come and
    go between two readings, and to those that the driver does not list.
    """

    exact: frozenset[str] = frozenset()
    tolerance_bytes: Mapping[str, int] = {"driver": 2 * _MIB}

    def __init__(
        self,
        device: str | torch.device = "cuda",
        *,
        nvml: Any = None,
        cuda: Any = None,
        identity: Identity | None = None,
    ) -> None:
        """`nvml` stands in for the module pynvml in tests, `cuda` for torch.cuda."""
        self._cuda = torch.cuda if cuda is None else cuda
        parsed = torch.device(device)
        index = self._cuda.current_device() if parsed.index is None else parsed.index
        self._device = torch.device("cuda", index)
        self._identity = identity or this_process()
        self.source, self.device = f"NVML of {self._device}", str(self._device)
        self.absent: Mapping[str, str] = {}
        self.facts: dict[str, object] = {}
        self._begun = False
        self._pid: int | None = None  # None: the whole device
        self._alone: set[int] = set()
        self._nvml: Any = _imported() if nvml is None else nvml
        self._reads_here = False
        if torch.version.hip is not None:
            self._lose("NVML knows NVIDIA's GPUs only, and this is ROCm")
        elif self._nvml is None:
            self._lose(f"nvidia-ml-py is not installed ({remedy('meters')})")
        else:
            self._reads_here = True

    def __enter__(self) -> Self:
        if not self._reads_here:
            return self
        self.absent = {}
        # A process is listed once it has a context on the device, which waiting for it makes.
        self._cuda.synchronize(self._device)
        try:
            self._nvml.nvmlInit()
            self._begun = True
            self.facts = {"driver": self._nvml.nvmlSystemGetDriverVersion()}
            self._handle = self._find()
            self._identify()
            self.facts["driver_bytes"] = "of this process" if self._pid is not None else "of the whole device"
        except self._nvml.NVMLError as error:
            self._lose(f"NVML: {error}")
        except _Unread as reason:
            self._lose(str(reason))
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._begun:
            self._begun = False
            self._nvml.nvmlShutdown()

    def watching(self) -> AbstractContextManager[object]:
        """The driver counts by itself."""
        return nullcontext()

    def synchronize(self) -> None:
        """Wait for the device."""
        self._cuda.synchronize(self._device)

    def reset_peak(self) -> None:
        """There is no peak."""

    def read(self) -> dict[str, int]:
        """driver; bytes."""
        if self.absent:
            return {}
        try:
            return {"driver": self._count()}
        except self._nvml.NVMLError as error:
            self._lose(f"NVML during the replay: {error}")
        except _Unread as reason:
            self._lose(str(reason))
        return {}

    def _lose(self, reason: str) -> None:
        self.absent = {"driver": reason}

    def _find(self) -> Any:
        """NVML's handle of the device, which may be a MIG slice."""
        uuid = str(self._cuda.get_device_properties(self._device).uuid)
        for kind in ("GPU-", "MIG-"):
            try:
                return self._nvml.nvmlDeviceGetHandleByUUID(kind + uuid.removeprefix(kind))
            except (self._nvml.NVMLError_NotFound, self._nvml.NVMLError_InvalidArgument):
                pass
        raise _Unread(f"NVML knows no device with the UUID {uuid}")

    def _identify(self) -> None:
        """Find out which process this one is, and whether the driver reports its bytes."""
        listed = self._listed()
        mine = [pid for pid in self._identity.pids if pid in listed]
        if not mine and self._identity.contained and len(listed) == 1:
            mine = list(listed)
        if not mine:
            pids = ", ".join(str(pid) for pid in sorted(listed)) or "no process"
            where = f"; {_CONTAINER}" if self._identity.contained else ""
            raise _Unread(f"the driver lists {pids} on {self._device}, and not the PID of this process{where}")
        self._pid = mine[0]
        if self._believable(listed[self._pid]):
            return
        if self._identity.contained:
            raise _Unread(f"the driver lists this process without its bytes; {_CONTAINER}")
        if self._partitioned():
            raise _Unread("the driver reports no bytes by process, and MIG shares this device")
        if len(listed) > 1:
            raise _Unread(f"the driver reports no bytes by process, and {len(listed)} processes are on {self._device}")
        self._pid, self._alone = None, set(listed)

    def _count(self) -> int:
        if self._pid is None:
            listed = set(self._listed())
            if listed != self._alone:
                others = ", ".join(str(pid) for pid in sorted(listed - self._alone)) or "no process at all"
                raise _Unread(f"the whole {self._device} was read, and during the replay it had others on it: {others}")
            return int(self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used)
        own_bytes = self._listed().get(self._pid)
        if own_bytes is None or not self._believable(own_bytes):
            raise _Unread(f"the driver stopped reporting the bytes of this process (PID {self._pid}): {own_bytes}")
        return own_bytes

    def _believable(self, own_bytes: int | None) -> bool:
        """In containers some drivers report 0, and a PID may be another process's outside."""
        return bool(own_bytes and own_bytes >= reserved_bytes(self._cuda, self._device))

    def _partitioned(self) -> bool:
        """Whether this is a whole GPU cut into MIG slices: its figures are of all of them."""
        try:
            current, _ = self._nvml.nvmlDeviceGetMigMode(self._handle)
        except self._nvml.NVMLError:  # a GPU that can't be cut, or a slice
            return False
        return bool(current)

    def _listed(self) -> dict[int, int | None]:
        """Bytes by PID of every process on the device; None where the driver does not report them."""
        n_bytes_by_pid: dict[int, int | None] = {}
        for name in _PROCESSES:
            try:
                processes = getattr(self._nvml, name)(self._handle)
            except (self._nvml.NVMLError_NotSupported, self._nvml.NVMLError_FunctionNotFound):
                if name == _PROCESSES[0]:
                    raise
                continue  # no graphics on a MIG slice, no MPS in an older driver
            for process in processes:
                # A process that computes and draws is in two lists, with all of its bytes in both.
                both = (n_bytes_by_pid.get(process.pid), process.usedGpuMemory)
                n_bytes_by_pid[process.pid] = max((each for each in both if each is not None), default=None)
        return n_bytes_by_pid


class _Unread(Exception):
    """The driver's figures can't be read, or not be trusted; the message says why."""


def this_process(
    status: Path = Path("/proc/self/status"), namespace: Path = Path("/proc/self/ns/pid"), platform: str = sys.platform
) -> Identity:
    """This process's PIDs: where /proc is the host's, first the one outside of the container."""
    try:
        lines = status.read_text().splitlines()
    except OSError:
        lines = []
    outermost = next((int(line.split()[1]) for line in lines if line.startswith("NSpid:")), os.getpid())
    try:
        contained = str(namespace.readlink()) != _FIRST_NAMESPACE
    except OSError:
        contained = platform == "linux"  # it hides: so may others be hidden
    return Identity(tuple(dict.fromkeys((outermost, os.getpid()))), contained)


def _imported() -> ModuleType | None:
    try:
        return importlib.import_module("pynvml")
    except ImportError:
        return None


def meter(device: str) -> NvmlMeter:
    """The driver's count beside the allocator's."""
    return NvmlMeter(device)
