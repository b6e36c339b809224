"""Around a model: modules that are moved, offloaded, spread, lazy; storages; questions about a card's details."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import accelerate
import pytest
import torch
from torch import nn

from tests.vram.simulated.devices import device
from vram.simulated.context import DEVICE

MiB = 2**20


@pytest.mark.filterwarnings("ignore:.*weight_norm` is deprecated")
def test_a_module_is_moved_whoever_holds_its_parameters() -> None:
    """Views of them, weak references, gradients still to be recorded: the parameter is the same object, elsewhere."""
    with device() as cuda:
        viewed, held, normed = nn.Linear(16, 16), nn.Linear(16, 16), nn.utils.weight_norm(nn.Linear(16, 16))
        view, weak = viewed.weight[:2], weakref.ref(held.weight)
        viewed.register_buffer("steps", torch.arange(3))
        kept = viewed.weight
        for module in (viewed, held, normed):
            module.to("cuda", torch.float16)
            assert {each.device for each in module.state_dict().values()} == {DEVICE}
            assert module(torch.zeros(1, 16, dtype=torch.float16, device="cuda")).dtype == torch.float16
        assert (viewed.weight is kept, weak() is held.weight, view.device.type) == (True, True, "cpu")
        assert isinstance(kept, nn.Parameter)
        assert viewed.get_buffer("steps").tolist() == [0, 1, 2]
        gc.collect()
        assert cuda.allocator.requested_bytes >= 2 * (16 * 16 + 16) * 2 + 24
        viewed.cpu()
        assert kept.device.type == "cpu"


def test_a_module_is_moved_to_the_meta_device_and_back() -> None:
    """There it has no bytes on the card; from there it gets new ones, whether it was there before or not."""
    with device() as cuda:
        module = nn.Linear(512, 512, bias=False).to("cuda")
        weight = module.weight
        copied = copy.deepcopy(module).to("meta")
        assert (copied.weight.device.type, cuda.allocator.requested_bytes) == ("meta", MiB)
        module.to("meta")
        assert (module.weight is weight, cuda.allocator.requested_bytes) == (True, 0)
        module.to_empty(device="cuda")
        assert (weight.device, weight.shape, cuda.allocator.requested_bytes) == (DEVICE, (512, 512), MiB)
        with torch.device("meta"):
            made_there = nn.Linear(512, 512, bias=False)
        made_there.to_empty(device="cuda")
        assert cuda.allocator.requested_bytes == 2 * MiB


def test_what_is_offloaded_comes_to_the_card_while_it_is_at_work() -> None:
    """With accelerate: one of eight matrices at a time, and the result."""
    with device() as cuda, torch.no_grad():
        model = nn.Sequential(*[nn.Linear(1024, 1024, bias=False) for _ in range(8)])
        accelerate.cpu_offload(model, execution_device=torch.device("cuda"))
        x = torch.zeros(1, 1024, device="cuda")
        cuda.allocator.reset_peak()
        model(x)
        peak_bytes = cuda.allocator.stats.requested_bytes.peak
        assert 4 * MiB + x.nbytes < peak_bytes < 8 * MiB
        assert cuda.allocator.requested_bytes == x.nbytes


def test_a_module_is_spread_over_the_one_card() -> None:
    """As torch does it over one: nothing is copied."""
    with device() as cuda, torch.no_grad():
        model, x = nn.Linear(16, 16, bias=False, device="cuda"), torch.zeros(2, 16, device="cuda")
        result = nn.DataParallel(model)(x)
        assert cuda.allocator.requested_bytes == model.weight.nbytes + x.nbytes + result.nbytes


STORAGES: dict[str, Callable[[], Any]] = {
    "made there": lambda: torch.UntypedStorage(1024, device="cuda"),
    "typed": lambda: torch.TypedStorage(256, dtype=torch.float32, device="cuda"),
    "moved there": lambda: torch.zeros(256).untyped_storage().cuda(),
}


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("make", STORAGES.values(), ids=STORAGES)
def test_a_storage_without_a_tensor_is_counted(make: Callable[[], Any]) -> None:
    """From its start to its end."""
    with device() as cuda:
        storage = make()
        assert (storage.nbytes(), cuda.allocator.requested_bytes) == (1024, 1024)
        del storage
        assert cuda.allocator.requested_bytes == 0
    assert torch.UntypedStorage(8).nbytes() == 8
    assert "__new__" not in vars(torch.UntypedStorage)


def test_a_storage_comes_back_to_main_memory() -> None:
    """Where nothing is counted."""
    with device() as cuda:
        there = torch.zeros(256, device="cuda")
        assert there.untyped_storage().cpu().nbytes() == cuda.allocator.requested_bytes == 1024


ANSWERED: dict[str, tuple[Callable[[], Any], Any]] = {
    "peers": (lambda: torch.cuda.can_device_access_peer(0, 0), False),
    "allocator": (lambda: torch.cuda.get_allocator_backend(), "native"),
    "capturing": (lambda: torch.cuda.is_current_stream_capturing(), False),
    "warnings of waiting": (lambda: torch.cuda.set_sync_debug_mode(1), None),
    "whether it warns": (lambda: torch.cuda.get_sync_debug_mode(), 0),
    "ranges": (lambda: (torch.cuda.nvtx.range_push("a"), torch.cuda.nvtx.range_pop()), (None, None)),
    "shared memory": (lambda: torch.zeros(3, device="cuda").share_memory_().device, DEVICE),
}


@pytest.mark.parametrize(("ask", "answer"), ANSWERED.values(), ids=ANSWERED)
def test_what_programs_ask_on_their_way_is_answered(ask: Callable[[], Any], answer: Any) -> None:
    """Nothing waits, nothing is captured, nobody profiles."""
    with device():
        assert ask() == answer


class Own(torch.Tensor):
    """A subclass as libraries have them."""


def packed() -> Any:
    return nn.utils.rnn.pack_padded_sequence(torch.zeros(3, 2, 4, device="cuda"), torch.tensor([3, 2]))


REFUSED: dict[str, Callable[[], Any]] = {
    "a lazy module": lambda: nn.LazyLinear(4, device="cuda"),
    "a subclass": lambda: torch.zeros(3, device="cuda").as_subclass(Own),
    "nested tensors": lambda: torch.nested.nested_tensor([torch.zeros(3, device="cuda")], layout=torch.jagged),
    "packed sequences": packed,
    "a pool": lambda: torch.cuda.MemPool(),
    "pools of graphs": lambda: torch.cuda.graph_pool_handle(),
    "details of the card": lambda: torch.cuda.get_device_properties(0).clock_rate,
}


@pytest.mark.parametrize("ask", REFUSED.values(), ids=REFUSED)
def test_what_it_cannot_do_it_says_and_where_to_go(ask: Callable[[], Any]) -> None:
    """In one sentence of ours, rather than from the depths of fake tensors."""
    with device(), pytest.raises((NotImplementedError, AttributeError), match=r"simulated.*measure on a GPU"):
        ask()


def test_what_has_no_bytes_is_not_pickled() -> None:
    """Real tensors are."""
    with device():
        with pytest.raises(NotImplementedError, match="no bytes to save"):
            pickle.dumps(torch.zeros(3, device="cuda"))
        assert not hasattr(torch.cuda.get_device_properties(0), "gcnArchName")
