"""Streams and events of a simulated card. All work is done when it is issued, so nothing waits; but PyTorch's allocator
gives each stream blocks of its own, and the current one decides which.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from ctypes import c_void_p
from typing import Any, Self

import torch

from vram.simulated.device import DEVICE, card_index, cuda_device
from vram.simulated.replacements import Places, always, of_the_card, refuse

NO_GRAPHS = "simulated CUDA does not model CUDA graphs and their pools: measure on a GPU"
_NO_OTHERS = "simulated CUDA has its own streams and events, and none of other libraries or processes: measure on a GPU"
_IN_POOL = 32  # streams of one priority; more are these again (c10/cuda/CUDAStream.cpp, kStreamsPerPool)
_PRIORITIES = 4  # kMaxCompileTimeStreamPriorities
_INDEX_SHIFT = 5  # of an id, whose lower bits have the priority


class Stream:
    """A stream of the card; equal ones are the same."""

    device, device_index, device_type = DEVICE, 0, 1  # c10::DeviceType::CUDA

    def __init__(self, streams: Streams, own: Any, stream_id: int, priority: int = 0) -> None:
        self._streams, self._own = streams, own
        self.stream_id, self.priority = stream_id, priority
        self._before: list[Stream] = []

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """torch's class, for `isinstance`."""
        return self._own

    @property
    def cuda_stream(self) -> int:
        """The handle: a number that no driver knows."""
        return self.stream_id

    native_handle = cuda_stream

    @property
    def _as_parameter_(self) -> c_void_p:
        return c_void_p(self.cuda_stream)

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.cuda_stream

    def __eq__(self, other: object) -> bool:
        return type(other) is Stream and other.stream_id == self.stream_id

    def __hash__(self) -> int:
        return hash((self.stream_id, self.device))

    def __repr__(self) -> str:
        return f"<torch.cuda.Stream device={self.device} cuda_stream={self.cuda_stream:#x}>"

    def __enter__(self) -> Self:
        self._before.append(self._streams.current)
        self._streams.current = self
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._streams.current = self._before.pop()

    def query(self) -> bool:
        """Whether its work is done."""
        return True

    def is_capturing(self) -> bool:
        """Whether it records a CUDA graph."""
        return False

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def wait_stream(self, stream: Any) -> None:
        """Nothing to wait for."""

    def wait_event(self, event: Any) -> None:
        """Nothing to wait for."""

    def record_event(self, event: Any = None) -> Any:
        """The event, recorded now; a new one where none is given."""
        event = Event(self._streams.event_class) if event is None else event
        event.record(self)
        return event

    @staticmethod
    def priority_range() -> tuple[int, int]:
        """The lowest priority and the highest."""
        return 0, 1 - _PRIORITIES


class Event:
    """A moment, by the clock of this machine."""

    device = DEVICE

    def __init__(self, own: Any, enable_timing: bool = False, *_: Any, **__: Any) -> None:
        self._own, self.enable_timing = own, enable_timing
        self._seconds: float | None = None

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """torch's class, for `isinstance`."""
        return self._own

    def record(self, stream: Any = None) -> None:
        """Take the time."""
        self._seconds = time.perf_counter()

    def query(self) -> bool:
        """Whether the work before it is done."""
        return True

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def wait(self, stream: Any = None) -> None:
        """Nothing to wait for."""

    def elapsed_time(self, end_event: Event) -> float:
        """Milliseconds that this machine took in between. Raises ValueError as torch does."""
        if not (self.enable_timing and end_event.enable_timing):
            raise ValueError("Both events must be created with argument 'enable_timing=True'.")
        if self._seconds is None or end_event._seconds is None:
            raise ValueError("Both events must be recorded before calculating elapsed time.")
        return (end_event._seconds - self._seconds) * 1000

    def ipc_handle(self) -> Any:
        """Raise NotImplementedError: no other process has this card."""
        refuse(_NO_OTHERS)()


class Streams:
    """The streams of one card, and which one is current in each thread."""

    def __init__(self) -> None:
        self._thread = threading.local()
        self._made: defaultdict[int, int] = defaultdict(int)  # by priority
        self._default = Stream(self, torch.cuda.Stream, 0)
        self._has_graph = False  # for good: nobody says when autograd's graphs end
        self.event_class = torch.cuda.Event

    @property
    def current(self) -> Stream:
        """The stream that this thread works on."""
        stream: Stream = getattr(self._thread, "stream", self._default)
        return stream

    @current.setter
    def current(self, stream: Stream) -> None:
        self._thread.stream = stream

    def note_graph(self, operands: Iterable[torch.Tensor]) -> None:
        """Note, before an operation runs, whether autograd records it on another stream than the default one."""
        if self._made and not self._has_graph and self.current.stream_id:
            self._has_graph = any(tensor.requires_grad for tensor in operands)

    @property
    def may_run_backward(self) -> bool:
        """Whether a backward pass works on the default stream alone: autograd takes that of each forward operation."""
        return not self._has_graph and not self.current.stream_id

    def places(self, record: Callable[[torch.Tensor, int], None]) -> Places:
        """Replacements for what makes and chooses streams; `record`: lets a stream, by its id, use a tensor."""
        current, default = of_the_card(lambda: self.current), of_the_card(lambda: self._default)
        own_record = torch.Tensor.record_stream

        def record_stream(tensor: torch.Tensor, stream: Any) -> None:
            if type(stream) is Stream:
                record(tensor, stream.stream_id)
            else:
                own_record(tensor, stream)  # in torch's words

        places: Places = {
            (torch.cuda.Stream, "__new__"): staticmethod(self._new_stream(torch.cuda.Stream)),
            (torch.cuda.Event, "__new__"): staticmethod(lambda cls, *args, **kwargs: Event(cls, *args, **kwargs)),
            (torch.cuda.ExternalStream, "__new__"): staticmethod(refuse(_NO_OTHERS)),
            (torch, "Stream"): self._class_of_any_device(torch.Stream, self._new_stream(torch.Stream)),
            (torch, "Event"): self._class_of_any_device(torch.Event, _new_event),
            (torch.cuda, "current_stream"): current,
            (torch.cuda, "default_stream"): default,
            (torch.cuda, "set_stream"): self._set,
            (torch.accelerator, "current_stream"): current,
            (torch.accelerator, "set_stream"): self._set,
            (torch.cuda, "get_stream_from_external"): refuse(_NO_OTHERS),
            (torch.Tensor, "record_stream"): record_stream,
        }
        return places

    def _set(self, stream: Stream | None) -> None:
        if stream is not None:
            self.current = stream

    def _new_stream(self, own: Any) -> Callable[..., Stream]:
        """Function that makes streams of the class `own`."""

        def new(cls: Any, device: Any = None, priority: int = 0, stream_id: int | None = None, **_: Any) -> Stream:
            card_index("cuda" if device is None else device)
            priority = max(min(priority, 0), 1 - _PRIORITIES)
            if stream_id is None:
                index, self._made[priority] = self._made[priority] % _IN_POOL, self._made[priority] + 1
                stream_id = index << _INDEX_SHIFT | (1 - priority) << 1 | 1
            return Stream(self, own, stream_id, priority)

        return new

    def _class_of_any_device(self, own: Any, new: Callable[..., Any]) -> Any:
        """A class called as `own`: the card's, where that is named or none; else torch's."""

        class Kind(type):
            def __instancecheck__(cls, instance: Any) -> bool:
                return isinstance(instance, own) or type(instance) in (Stream, Event)

        def make(cls: Any, device: Any = None, *args: Any, **kwargs: Any) -> Any:
            on_card = cuda_device(device).type == "cuda"
            return new(own, device, *args, **kwargs) if on_card else own(device, *args, **kwargs)

        return Kind(own.__name__, (), {"__new__": make})


def _new_event(own: Any, device: Any = None, *, enable_timing: bool = False, **kwargs: Any) -> Event:
    card_index("cuda" if device is None else device)
    return Event(own, enable_timing)


def without_graphs() -> Places:
    """Refusals of CUDA graphs, whose memory is in pools of their own."""
    names = ("graph", "make_graphed_callables", "graph_pool_handle")
    owners = (torch.cuda, torch.cuda.graphs)
    places: Places = {(owner, name): refuse(NO_GRAPHS) for owner in owners for name in names}
    return places | {(owner, "is_current_stream_capturing"): always(False) for owner in owners}
