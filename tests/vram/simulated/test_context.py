"""The simulated device: what it counts, what it answers, what it refuses, and that it leaves nothing behind."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import nn
from torch._subclasses import fake_tensor
from torch.cuda import max_memory_allocated
from torch.nn.attention.flex_attention import flex_attention

import vram
from vram.cards import Card
from vram.meters.simulated import SimulatedCudaMeter
from vram.simulated.context import DEVICE, SimulatedCuda
from vram.simulated.known_values import KnownValues, UnknownValue

MiB = 2**20
A_CARD = Card("8GiB", 8 * 2**30, (8, 0), context_bytes=0)


def device(card: Card = A_CARD, **options: Any) -> SimulatedCuda:
    return SimulatedCuda(card, **{"cublas_workspace": False, **options})


def test_tensors_have_no_bytes_and_are_counted_in_blocks_and_segments() -> None:
    """7 GiB on a machine that need not have them; 1,000 B are a block of 1,024 in a segment of 2 MiB."""
    with device() as cuda:
        large = torch.empty(7 * 2**30, dtype=torch.uint8, device="cuda")
        small = torch.zeros(250, device="cuda:0")
        assert (cuda.allocator.requested_bytes, cuda.allocator.allocated_bytes) == (7 * 2**30 + 1000, 7 * 2**30 + 1024)
        assert cuda.allocator.reserved_bytes == 7 * 2**30 + 2 * MiB
        del large, small
    assert cuda.allocator.allocated_bytes == 0


def test_a_storage_counts_once_and_ends_with_its_last_view() -> None:
    """Views, slices and results written in place are no new storages; resizing is."""
    with device() as cuda:
        tensor = torch.zeros(1000, 4, device=DEVICE)
        before = cuda.allocator.requested_bytes
        view = tensor[:10].view(-1)
        tensor.add_(1)
        tensor[0] = 2
        assert cuda.allocator.requested_bytes == before == 16_000
        del tensor
        assert cuda.allocator.requested_bytes == before
        view.untyped_storage().resize_(0)
        view = torch.zeros(3, device=DEVICE)
        view.resize_(10)
        gc.collect()
        assert cuda.allocator.requested_bytes == 40


MOVES: dict[str, Callable[[Any], Any]] = {
    "to cuda": lambda it: it.to("cuda"),
    "to a device without an index": lambda it: it.to(torch.device("cuda")),
    "to device=": lambda it: it.to(device="cuda"),
    "cuda()": lambda it: it.cuda(),
    "to 0": lambda it: it.to(0),
    "cuda(0)": lambda it: it.cuda(0),
    "a copy of it": lambda it: copy.deepcopy(it.cuda()),
    "cast and moved": lambda it: it.to("cuda:0", torch.float16),
    "half": lambda it: it.cuda().half(),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_tensors_and_modules_move_there_however_it_is_said(move: Callable[[Any], Any]) -> None:
    """ "cuda" is cuda:0, and never the meta device; a module takes its parameters along."""
    with device() as cuda:
        assert move(torch.zeros(3)).device == DEVICE
        module = move(nn.Linear(8, 4))
        assert {parameter.device for parameter in module.parameters()} == {DEVICE}
        assert module(move(torch.zeros(2, 8))).shape == (2, 4)
        gc.collect()
        size = 2 if module.weight.dtype == torch.float16 else 4
        assert cuda.allocator.requested_bytes == (8 * 4 + 4) * size


def test_real_tensors_come_along_with_what_they_hold() -> None:
    """Inputs made outside become fake; small integers keep their values."""
    ids, pixels = torch.tensor([[1, 5, 5, 2]]), torch.randn(1, 3, 4, 4)
    with device():
        there = ids.to("cuda")
        assert (there == 5).sum().item() == 2
        assert there.tolist() == [[1, 5, 5, 2]]
        assert (there == 5).nonzero().shape == (2, 2)
        assert bool((there[0, :2] == torch.tensor([1, 5], device="cuda")).all())
        assert nn.Conv2d(3, 8, 2, device="cuda")(pixels.cuda()).shape == (1, 8, 3, 3)


def test_values_follow_writes_and_are_lost_where_something_unknown_is_written() -> None:
    """Through views too: a value that may be wrong is no value."""
    with device():
        numbers = torch.arange(6, device="cuda")
        numbers[2:4] = 9
        assert numbers.tolist() == [0, 1, 9, 9, 4, 5]
        numbers[:1].copy_(torch.randn(1, device="cuda"))
        with pytest.raises(UnknownValue, match=r"test_context\.py:\d+ test_values_follow.* depends on activations"):
            numbers[5].item()


def refused(numbers: torch.Tensor, _: torch.Tensor) -> None:
    with pytest.raises(RuntimeError, match=r"same device|different devices"):
        numbers.add_(torch.ones(60, dtype=torch.int64))


WRITES: dict[str, Callable[[torch.Tensor, torch.Tensor], object]] = {
    "in place": lambda numbers, unknown: numbers.add_(unknown),
    "out=": lambda numbers, unknown: torch.add(numbers, unknown, out=numbers),
    "many at once": lambda numbers, unknown: torch._foreach_add_([numbers], [unknown]),
    "data": lambda numbers, unknown: setattr(numbers, "data", unknown),
    "of another device": refused,
    "as another dtype": lambda numbers, unknown: numbers.view(torch.float64).copy_(unknown),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_what_is_written_is_never_the_old_value(write: Callable[[torch.Tensor, torch.Tensor], object]) -> None:
    """However the unknown comes into a tensor."""
    with device():
        numbers, unknown = torch.arange(60, device="cuda"), torch.randn(60, device="cuda").long()
        write(numbers, unknown)
        with pytest.raises(UnknownValue):
            numbers[0].item()


def test_what_is_written_through_a_view_that_is_too_large_to_be_known_is_not_the_old_value() -> None:
    """Through a view of that view too; what is only looked at stays known."""
    with device():
        numbers = torch.zeros(2**19 + 1, dtype=torch.complex64, device="cuda")
        view = torch.view_as_real(numbers)[:10]
        assert numbers[0].item() == 0
        view.copy_(torch.randn(10, 2, device="cuda"))
        with pytest.raises(UnknownValue):
            numbers[0].item()


def test_places_in_the_memory_of_a_tensor_from_outside_are_not_guessed() -> None:
    """In main memory those between are there; of every other number that came to the card they are not."""
    numbers = torch.arange(10)[::2]
    with device():
        assert numbers.as_strided((3,), (1,), 0).tolist() == [0, 1, 2]
        assert numbers.cuda().as_strided((3,), (1,), 0).tolist() == [0, 2, 4]


def test_writes_into_a_tensor_from_outside_with_nan_are_kept() -> None:
    """NaN is not equal to itself, and yet not changed."""
    scale = torch.tensor([torch.nan, 1.0])
    with device():
        scale[1] = 5
        assert scale[1].item() == 5


def test_writes_into_a_tensor_from_outside_are_kept() -> None:
    """It is in main memory, inside and outside: the next reads what the last wrote, wherever that was."""
    counter = torch.tensor([1, 2, 3])
    cuda = device()
    with cuda:
        counter[0] = 7
        assert counter.cuda().tolist() == [7, 2, 3]
    counter[2] = 9
    with cuda:
        assert counter.cuda().tolist() == [7, 2, 9]


def test_known_masks_choose() -> None:
    """Of unknown values too: a card needs the mask alone to know how many."""
    with device():
        values, mask = torch.randn(4, 3, device="cuda"), torch.tensor([True, False, True, True], device="cuda")
        assert values[mask].shape == (3, 3)
        assert values[mask, 1].shape == (3,)
        assert torch.masked_select(values, mask[:, None]).shape == (9,)
        assert torch.arange(4, device="cuda")[mask].tolist() == [0, 2, 3]


def test_masks_that_look_like_activations_are_known() -> None:
    """Made of what a tensor looks like, and not of what it holds."""
    with device():
        values = torch.randn(40, 3, device="cuda")
        for mask in (
            torch.zeros_like(values[:, 0], dtype=torch.bool),
            values.new_zeros(40, dtype=torch.bool),
            torch.full_like(values[:, 0], 0, dtype=torch.bool),
            torch.full((40,), False, device="cuda"),
            torch.zeros_like(torch.empty(40, 2**40)[:, 0], dtype=torch.bool).cuda(),
        ):
            mask[:7] = True
            assert values[mask].shape == (7, 3)
        assert values.new_ones(2, dtype=torch.int64).tolist() == values[0, :2].new_full((2,), 1).tolist() == [1, 1]
        with pytest.raises(UnknownValue):
            torch.empty_like(values[0]).tolist()


def test_what_is_too_large_to_be_known_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mask of a prompt of 100,000 tokens would take 10 GB of main memory, to be forgotten at once."""
    computed: list[str] = []
    own = KnownValues._on_values

    def spied(known_values: KnownValues, func: Any, args: Any, kwargs: Any) -> Any:
        computed.append(func._schema.name)
        return own(known_values, func, args, kwargs)

    monkeypatch.setattr(KnownValues, "_on_values", spied)
    with device():
        places = torch.arange(2000, device="cuda")
        assert (places[:, None] >= places).shape == torch.eye(2000, device="cuda").shape
        assert (places[:10, None] >= places[:10]).sum().item() == 55
    assert computed.count("aten::ge") == 1
    assert "aten::eye" not in computed


def test_masks_of_floats_are_known() -> None:
    """They are made of nothing, whatever their dtype; nn.TransformerEncoder asks whether one is causal."""
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, batch_first=True), 1, enable_nested_tensor=False)
    with device():
        mask = nn.Transformer.generate_square_subsequent_mask(9, device="cuda")
        assert encoder.cuda()(torch.zeros(1, 9, 16, device="cuda"), mask=mask).shape == (1, 9, 16)
        assert torch.ones(40, device="cuda").long().sum().item() == 40
        assert torch.linspace(0, 99, 20, device="cuda").long()[-1].item() == 99
        mask.normal_()
        with pytest.raises(UnknownValue):
            mask[0, 0].item()
        with pytest.raises(UnknownValue):
            torch.empty(40, device="cuda").sum().item()


def test_running_statistics_of_unknown_batches_are_unknown() -> None:
    """Though no schema says that they are written into."""
    with device():
        norm = nn.BatchNorm1d(3).cuda()
        assert norm.running_mean.tolist() == [0, 0, 0]
        norm(torch.randn(5, 3, device="cuda"))
        assert norm.num_batches_tracked.item() == 1
        for statistics in (norm.running_mean, norm.running_var):
            with pytest.raises(UnknownValue):
                statistics.tolist()


def test_random_numbers_that_programs_ask_for_are_drawn() -> None:
    """A data loader's seed; and what is drawn until it fits, as some models' first weights, is taken to fit."""
    numbers = torch.utils.data.TensorDataset(torch.arange(10))
    with device():
        assert [len(batch) for (batch,) in torch.utils.data.DataLoader(numbers, batch_size=4)] == [4, 4, 2]
        assert nn.init.trunc_normal_(torch.empty(4, 4, device="cuda")).shape == (4, 4)
        assert torch.tensor([torch.arange(3, device="cuda")[1], 5]).tolist() == [1, 5]


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.parametrize("n_workers", [0, 1])
def test_data_loaders_bring_their_batches_pinned_or_by_workers(n_workers: int) -> None:
    """A worker reads for real; what it sends is real, and its integers are known."""
    numbers = torch.utils.data.TensorDataset(torch.arange(10), torch.randn(10, 3))
    with device() as cuda:
        seen = []
        for ids, pixels in torch.utils.data.DataLoader(numbers, batch_size=4, num_workers=n_workers, pin_memory=True):
            assert cuda.allocator.requested_bytes == 0
            seen += ids.to("cuda", non_blocking=True).tolist()
            assert pixels.cuda().shape[1:] == (3,)
        assert seen == list(range(10))


def test_the_card_is_the_accelerator() -> None:
    """Asked for as such, or by its number alone, as `device_map="auto"` does; optimizers ask it too."""
    with device() as cuda:
        assert torch.accelerator.is_available()
        assert torch.accelerator.current_accelerator().type == "cuda"
        assert torch.device(0) == DEVICE
        kept = nn.Linear(16, 16, bias=False).to(torch.accelerator.current_accelerator())
        assert torch.accelerator.memory_allocated() == kept.weight.nbytes
        assert torch.accelerator.memory.memory_allocated() == kept.weight.nbytes
        kept.weight.grad = torch.zeros_like(kept.weight)
        optimizer = torch.optim.SGD(kept.parameters(), momentum=0.9)
        optimizer.step()
        assert cuda.allocator.requested_bytes == 3 * kept.weight.nbytes
        with pytest.raises(RuntimeError, match="invalid device ordinal"):
            torch.zeros(3, device=torch.device(1))


def test_generators_on_the_card_are_taken() -> None:
    """They say that they are there; numbers of the card are not drawn, those of the CPU are."""
    before, there = torch.Generator, torch.Generator().manual_seed(3)
    with device():
        torch.cuda.manual_seed(1)
        generator = torch.Generator(device="cuda").manual_seed(3)
        assert (generator.device.type, generator.initial_seed()) == ("cuda", 3)
        assert torch.randn(4, generator=generator, device="cuda").shape == (4,)
        assert isinstance(there, torch.Generator)
        assert torch.Generator().device.type == "cpu"
        sent = pickle.dumps(there)
        with pytest.raises(RuntimeError, match="invalid device ordinal"):
            torch.Generator("cuda:1")
        drawn = torch.randperm(9, generator=there).tolist()
    assert torch.Generator is before
    assert pickle.loads(sent).initial_seed() == 3  # noqa: S301 (ours)
    assert drawn == torch.randperm(9, generator=torch.Generator().manual_seed(3)).tolist()


def test_another_card_than_the_one_is_refused() -> None:
    """Never counted as nothing."""
    with device():
        for ask in (
            lambda: torch.zeros(3, device="cuda:1"),
            lambda: torch.zeros(3).to("cuda:1"),
            lambda: torch.zeros(3).cuda(1),
            lambda: torch.cuda.set_device(1),
        ):
            with pytest.raises(RuntimeError, match="invalid device ordinal"):
                ask()


def test_other_threads_are_followed() -> None:
    """What they make and run on the card is the card's; what they read into main memory stays real, as transformers'
    loading does. A storage that is resized by hand is followed too."""
    with device() as cuda:
        first, made = torch.zeros(16, 16, device="cuda"), []
        before = cuda.allocator.requested_bytes
        thread = threading.Thread(
            target=lambda: made.extend(
                [first + 1, torch.zeros(100, device="cuda"), torch.ones(3), torch.ones(3).cuda()]
            )
        )
        thread.start()
        thread.join()
        assert cuda.allocator.requested_bytes - before == first.nbytes + 400 + 12
        assert [type(tensor) is fake_tensor.FakeTensor for tensor in made] == [True, True, False, True]
        first.untyped_storage().resize_(0)
        assert cuda.allocator.requested_bytes - before == 400 + 12


def test_threads_at_once_take_turns() -> None:
    """Each matrix is there once, however they interleave."""

    def powers(_: int) -> torch.Tensor:
        matrix = torch.zeros(16, 16, device="cuda")
        for _ in range(30):
            matrix = matrix @ matrix + 1
        return matrix

    with device() as cuda:
        with ThreadPoolExecutor(4) as pool:
            made = list(pool.map(powers, range(8)))
        assert cuda.allocator.requested_bytes == sum(matrix.nbytes for matrix in made) == 8 * 16 * 16 * 4


FROM_A_THREAD: dict[str, Callable[[], object]] = {
    "to a name": lambda: torch.zeros(3).to("cuda:0"),
    "to a keyword": lambda: torch.zeros(3).to(device="cuda"),
    "to a number": lambda: torch.zeros(3).to(0),
    "to where another is": lambda: torch.zeros(3).to(torch.zeros(1, device="cuda")),
    "cuda()": lambda: torch.zeros(3).cuda(),
    "a factory": lambda: torch.zeros(3, device="cuda"),
    "a factory like another": lambda: torch.empty_like(torch.zeros(2), device="cuda"),
    "of a list": lambda: torch.tensor([1.0, 2.0], device="cuda:0"),
    "a module": lambda: nn.Linear(3, 3).to("cuda"),
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU answers")
@pytest.mark.parametrize("way", FROM_A_THREAD)
def test_a_thread_takes_from_the_card_and_torch_does_not_think_it_initialised(way: str) -> None:
    """What torch without a GPU says of one is afterwards what it was before."""

    def refusal() -> str:
        with pytest.raises((AssertionError, RuntimeError)) as caught:
            torch.zeros(3).to("cuda:0")
        return str(caught.value)

    before, made = refusal(), []
    with device() as cuda:
        thread = threading.Thread(target=lambda: made.append(FROM_A_THREAD[way]()))
        thread.start()
        thread.join()
        assert len(made) == 1
        assert cuda.allocator.allocated_bytes > 0
    assert refusal() == before


def test_what_torch_s_functions_say_they_say_however_they_are_reached() -> None:
    """Imported before, in `torch.cuda.memory`, and by the names that `memory_stats` has on a card."""
    with device() as cuda:
        kept = torch.zeros(1000, device="cuda")
        assert max_memory_allocated() == torch.cuda.memory.max_memory_allocated() == cuda.allocator.allocated_bytes
        stats = torch.cuda.memory_stats(device="cuda:0")
        assert (stats["allocation.all.current"], stats["segment.all.peak"]) == (1, 1)
        assert sum(segment["total_size"] for segment in torch.cuda.memory_snapshot()) == 2 * MiB
        with torch.cuda.device(0):
            assert torch.cuda.current_device() == kept.get_device() == 0


def test_a_process_can_be_allowed_a_part_of_the_card() -> None:
    """`set_per_process_memory_fraction` bounds what is reserved, and the message says so as torch does."""
    with device("1GiB"):
        assert torch.cuda.get_per_process_memory_fraction() == 1.0
        torch.cuda.set_per_process_memory_fraction(0.25)
        assert torch.cuda.get_per_process_memory_fraction() == 0.25
        kept = [torch.empty(100 * MiB, dtype=torch.uint8, device="cuda") for _ in range(2)]
        words = r"Tried to allocate 100.00 MiB.* memory in use. 256.00 MiB allowed; Of the allocated memory 200.00 MiB"
        with pytest.raises(torch.OutOfMemoryError, match=words):
            torch.empty(100 * MiB, dtype=torch.uint8, device="cuda")
        stats = torch.cuda.memory_stats()
        assert (len(kept), stats["num_alloc_retries"], stats["num_ooms"]) == (2, 1, 1)
        torch.cuda.reset_accumulated_memory_stats()
        stats = torch.cuda.memory_stats()
        assert (stats["num_alloc_retries"], stats["num_ooms"]) == (0, 0)
        torch.cuda.set_per_process_memory_fraction(1.0, 0)
        torch.empty(100 * MiB, dtype=torch.uint8, device="cuda")
        with pytest.raises(ValueError, match="Allowed range: 0~1"):
            torch.cuda.set_per_process_memory_fraction(2.0)
        with pytest.raises(torch.OutOfMemoryError, match="more than 1EB memory"):
            torch.empty(2**60, dtype=torch.uint8, device="cuda")
        assert torch.cuda.memory_stats()["num_ooms"] == 0


def test_figures_and_history_that_it_has_not_are_refused_by_name(tmp_path: Path) -> None:
    """By pool there are none, nor addresses, nor a history; a snapshot of what is alive there is."""
    with device():
        kept = torch.zeros(1000, device="cuda")
        with pytest.raises(
            KeyError, match=r"allocated_bytes.small_pool.current: simulated CUDA has the figures of all"
        ):
            torch.cuda.memory_stats()["allocated_bytes.small_pool.current"]
        with pytest.raises(NotImplementedError, match="no addresses to hand out"):
            torch.cuda.caching_allocator_alloc(4)
        with pytest.warns(UserWarning, match="records no history"):
            torch.cuda.memory._record_memory_history()
        torch.cuda.memory._dump_snapshot(str(tmp_path / "snapshot.pickle"))
        assert (tmp_path / "snapshot.pickle").stat().st_size > 100
        segments = torch.cuda.memory._snapshot()["segments"]
        assert [segment["requested_size"] for segment in segments] == [kept.nbytes]


def test_what_it_does_not_model_it_says() -> None:
    """cuDNN's recurrent networks, streams, compiled code and the encoder's fused path: never a wrong figure in
    silence."""
    encoder = nn.TransformerEncoderLayer(16, 2, batch_first=True).eval()
    with device(), torch.inference_mode():
        x = torch.zeros(1, 4, 16, device="cuda")
        with pytest.raises(NotImplementedError, match="cuDNN's lstm"):
            nn.LSTM(16, 16).cuda()(x)
        with pytest.raises(NotImplementedError, match="one stream"):
            torch.cuda.Stream()
        with pytest.raises(NotImplementedError, match="one stream"):
            torch.Event("cuda")
        with pytest.warns(UserWarning, match="compiled code allocates otherwise"):
            torch.compile(nn.Linear(16, 16).cuda())(x)
        padded = torch.tensor([[False, False, True, True]], device="cuda")
        for masks in ({}, {"src_key_padding_mask": padded}):
            with pytest.warns(UserWarning, match="set_fastpath_enabled"):
                encoder.cuda()(x, **masks)
        with pytest.warns(UserWarning, match="set_fastpath_enabled"):
            nn.TransformerEncoder(encoder, 1)(x, src_key_padding_mask=padded)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")  # once in a process: `load_model` asks
def test_weights_of_a_file_come_to_the_card(tmp_path: Path) -> None:
    """safetensors reads them for real, first."""
    safetensors.torch.save_file({"weight": torch.ones(4, 4)}, tmp_path / "model.safetensors")
    with device() as cuda:
        loaded = safetensors.torch.load_file(tmp_path / "model.safetensors", device="cuda:0")
        assert loaded["weight"].device == DEVICE
        assert cuda.allocator.requested_bytes == 64
        linear = nn.Linear(4, 4, bias=False)
        assert safetensors.torch.load_model(linear, tmp_path / "model.safetensors", device=0) == (set(), [])


@pytest.mark.parametrize("where", ["cuda", "cuda:0", 0])
def test_weights_are_read_one_by_one_and_in_slices(where: Any, tmp_path: Path) -> None:
    """By a `safe_open` that was imported before, in the words of its own."""
    safetensors.torch.save_file({"weight": torch.ones(4, 4), "steps": torch.arange(3)}, tmp_path / "model.safetensors")
    with device() as cuda, safe_open(tmp_path / "model.safetensors", framework="pt", device=where) as opened:
        assert sorted(opened.keys()) == ["steps", "weight"]
        weight, rows, steps = opened.get_tensor("weight"), opened.get_slice("weight"), opened.get_tensor("steps")
        assert (weight.device, rows[:2].device, steps.tolist()) == (DEVICE, DEVICE, [0, 1, 2])
        assert (rows.get_shape(), rows[:2].shape) == ([4, 4], (2, 4))
        assert cuda.allocator.requested_bytes == 64 + 24
        with safe_open(tmp_path / "model.safetensors", framework="pt") as in_main_memory:
            assert (in_main_memory.get_tensor("weight") + torch.ones(4)).device.type == "cpu"


IMPORTED_INSIDE = """
import sys
import torch
from vram.simulated.context import SimulatedCuda
path = sys.argv[1]
assert "safetensors.torch" not in sys.modules
with SimulatedCuda("24GiB"):
    import safetensors.torch
    from safetensors import safe_open
    import taking
    assert safetensors.torch.load_file(path, device="cuda")["weight"].device.type == "cuda"
    with safe_open(path, framework="pt", device=0) as opened:
        assert opened.get_tensor("weight").device.type == "cuda"
assert taking.safe_open is safetensors.safe_open is safetensors.torch.safe_open
assert taking.Generator is torch.Generator is torch._C.Generator
assert taking.memory_allocated is torch.cuda.memory_allocated
"""


def test_what_is_imported_inside_reads_files_too_and_keeps_nothing(tmp_path: Path) -> None:
    """In a process of its own, as it once ended there: no other has safetensors not yet imported."""
    safetensors.torch.save_file({"weight": torch.ones(4, 4)}, tmp_path / "model.safetensors")
    taking = "from safetensors import safe_open\nfrom torch import Generator\nfrom torch.cuda import memory_allocated\n"
    (tmp_path / "taking.py").write_text(taking, encoding="utf-8")
    paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    command = [sys.executable, "-c", IMPORTED_INSIDE, str(tmp_path / "model.safetensors")]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


def test_known_values_come_to_numpy_and_into_texts() -> None:
    """A copy of them from the card, themselves from main memory; what is unknown is refused by line."""
    with device():
        there = torch.arange(3)
        there.numpy()[0] = 7
        there.cuda().numpy(force=True)[1] = 7
        assert there.tolist() == [7, 1, 2]
        ids, scores = torch.arange(3, device="cuda"), torch.randn(3, device="cuda")
        assert ids.cpu().numpy().tolist() == np.asarray(ids.cpu(), dtype=np.int32).tolist() == [0, 1, 2]
        assert f"{ids[2]:>3} {ids.sum() / 2:.1f}" == "  2 1.5"
        with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
            ids.numpy()
        for ask in (lambda: scores.cpu().numpy(), lambda: np.asarray(scores.cpu()), lambda: f"{scores.sum():.2f}"):
            with pytest.raises(UnknownValue, match=r" at .*test_context\.py:\d+ .*avoid the read"):
                ask()


def test_what_has_no_bytes_is_not_saved(tmp_path: Path) -> None:
    """What is real is."""
    real = {"steps": torch.arange(3)}
    with device():
        for save in (torch.save, safetensors.torch.save_file):
            with pytest.raises(NotImplementedError, match="no bytes to save"):
                save(nn.Linear(4, 4).state_dict(), tmp_path / "fake")
            save(real, tmp_path / save.__name__)
        for saved in (nn.Linear(4, 4), {"step": 3, "models": [nn.Linear(4, 4)]}):
            with pytest.raises(NotImplementedError, match="no bytes to save"):
                torch.save(obj=saved, f=tmp_path / "fake")
        torch.save(obj=real, f=tmp_path / "by name")
        safetensors.torch.save_file(tensors=real, filename=tmp_path / "by name too")
    for name in (torch.save.__name__, "by name"):
        assert torch.load(tmp_path / name)["steps"].tolist() == [0, 1, 2]


def test_what_is_unknown_ends_with_its_tensor() -> None:
    """New tensors may lie where lost ones lay, and have values of their own."""
    with device():
        lost = [torch.arange(6, device="cuda") for _ in range(50)]
        for numbers in lost:
            numbers[:1].copy_(torch.randn(1, device="cuda"))
        del lost, numbers
        new = [torch.arange(6, device="cuda") for _ in range(50)]
        assert [numbers.tolist() for numbers in new] == [list(range(6))] * 50


def test_what_depends_on_activations_is_refused_by_operation_and_line() -> None:
    """Never a guess: the message has the operation, the line, and the way out."""
    with device():
        activations = torch.randn(4, device="cuda")
        for ask in (
            lambda: activations.sum().item(),
            lambda: activations[activations > 0],
            lambda: bool(activations[0]),
        ):
            with pytest.raises(UnknownValue, match=r"aten\.\w+.* at .*test_context\.py:\d+ .*avoid the read"):
                ask()


def sparse_on_the_card() -> torch.Tensor:
    places = torch.ones(2, 3, dtype=torch.int64, device="cuda")
    return torch.sparse_coo_tensor(places, torch.ones(3, device="cuda"), (9, 9), check_invariants=False)


def test_sparse_tensors_of_known_values_are_summed() -> None:
    with device(), torch.inference_mode():
        assert sparse_on_the_card().sum().item() == 3


UNMODELLED: dict[str, Callable[[], Any]] = {
    "_thnn_fused_gru_cell": lambda: nn.GRUCell(4, 4).cuda()(torch.zeros(2, 4, device="cuda")),
    "_to_sparse": lambda: torch.zeros(5, 5, device="cuda").to_sparse(),
    "binomial": lambda: torch.binomial(torch.ones(3, device="cuda"), torch.ones(3, device="cuda")),
    "_coalesce": lambda: sparse_on_the_card().coalesce(),
    "mm.default of sparse tensors": lambda: sparse_on_the_card() @ torch.zeros(9, 2, device="cuda"),
}


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch 2.11
@pytest.mark.parametrize("name", UNMODELLED)
def test_operations_without_a_rule_are_refused_by_name_and_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And never tried for real on zeros, on a GPU that may be there."""
    monkeypatch.setattr(fake_tensor, "run_fallback_kernel", lambda *_: pytest.fail("it was tried"))
    with device(), pytest.raises(NotImplementedError, match=rf"not model aten\.{name}.* at .*test_context\.py:\d+ "):
        UNMODELLED[name]()


@pytest.mark.filterwarnings("ignore:.*flex_attention called without torch.compile", "ignore:.*compiled code allocates")
def test_flex_attention_is_refused_by_name_and_line() -> None:
    """Its scores are made by code that is compiled on a card."""
    with device():
        heads = torch.zeros(1, 2, 16, 16, device="cuda")
        with pytest.raises(NotImplementedError, match=r"not model flex_attention, at .*test_context\.py:\d+ "):
            flex_attention(heads, heads, heads)


def test_how_many_are_not_zero_is_not_guessed_on_the_cpu_either() -> None:
    """An identity in sparse form has as many elements as rows; zeros have none."""
    with device(), pytest.raises(NotImplementedError, match="_to_sparse"):
        torch.eye(50).to_sparse()


def test_what_generation_chooses_is_assumed() -> None:
    """argmax and multinomial give the token, then those after it; topk and sort the first positions."""
    with device(token=11):
        logits = torch.randn(2, 50, device="cuda")
        assert logits.argmax(-1).tolist() == [11, 11]
        assert torch.multinomial(logits.softmax(-1), 3).tolist() == [[11, 12, 13]] * 2
        assert torch.multinomial(logits.softmax(-1), 3, replacement=True).tolist() == [[11] * 3] * 2
        assert logits.topk(3).indices.tolist() == [[0, 1, 2]] * 2


def test_what_is_assumed_could_be_chosen() -> None:
    """Of three classes there is no eighth; along each dimension every position is there once, as in a real order."""
    with device():
        scores = torch.randn(3, 5, device="cuda")
        assert scores.argmax(0).tolist() == [2] * 5
        assert scores[:, :1].argmax().item() == 2
        assert scores.sum().argmax().item() == 0
        assert scores.max(0).indices.tolist() == scores.min(0).indices.tolist() == [0] * 5
        assert sorted(torch.multinomial(scores[0].softmax(-1), 5).tolist()) == [0, 1, 2, 3, 4]
        assert scores.topk(2, dim=0).indices.tolist() == [[0] * 5, [1] * 5]
        assert scores.sort(dim=0, stable=True).indices.tolist() == [[0] * 5, [1] * 5, [2] * 5]
        chosen = torch.zeros(3, dtype=torch.bool, device="cuda")
        chosen[scores[:, :1].argsort(0).squeeze(1)[:2]] = True
        assert scores[chosen].shape == (2, 5)


def test_questions_about_the_gpu_are_answered_by_the_card_and_undone() -> None:
    """Inside, the simulated card's figures; outside, what torch said before, also after an error."""
    asked = ("is_available", "device_count", "memory_allocated", "max_memory_reserved", "mem_get_info", "empty_cache")
    before = [getattr(torch.cuda, name) for name in asked]
    cuda = device(Card("test", 4 * 2**30, (9, 0), context_bytes=2**30))

    def fails_inside() -> None:
        with cuda, cuda:
            kept = torch.zeros(MiB, device="cuda")
            assert torch.cuda.is_available()
            assert torch.cuda.get_device_properties(0).total_memory == 4 * 2**30
            assert torch.cuda.get_device_capability() == (9, 0)
            assert torch.cuda.memory_allocated() == kept.nbytes == torch.cuda.memory_stats()["requested_bytes.all.peak"]
            assert torch.cuda.mem_get_info() == (3 * 2**30 - 20 * MiB, 4 * 2**30)
            torch.cuda.reset_peak_memory_stats()
            raise KeyError

    with pytest.raises(KeyError):
        fails_inside()
    assert [getattr(torch.cuda, name) for name in asked] == before
    assert torch.zeros(1).item() == 0


def test_out_of_memory_is_pytorch_s_error_and_the_run_goes_on() -> None:
    """In CUDA's words, with the segment that was asked for; what was alive stays counted, and smaller work fits."""
    with device(Card("small", 64 * MiB, context_bytes=0)) as cuda:
        kept = torch.zeros(40 * MiB, dtype=torch.uint8, device="cuda")
        with pytest.raises(
            torch.OutOfMemoryError, match=r"Tried to allocate 26\.00 MiB\. GPU 0 has a total capacity of"
        ):
            torch.zeros(25 * MiB, dtype=torch.uint8, device="cuda")
        assert cuda.allocator.requested_bytes == kept.nbytes
        torch.zeros(20 * MiB, dtype=torch.uint8, device="cuda")


@pytest.mark.parametrize(("capability", "n_bytes"), [((8, 0), 8_519_680), ((9, 0), 32 * MiB)])
def test_cublas_takes_its_workspace_once(capability: tuple[int, int], n_bytes: int) -> None:
    """At the first matrix product, inside what is allocated, for good; not for sums."""
    with SimulatedCuda(Card("test", 2**30, capability, context_bytes=0)) as cuda:
        matrix = torch.zeros(8, 8, device="cuda")
        matrix.sum()
        before = cuda.allocator.requested_bytes
        for _ in range(2):
            matrix @ matrix
        assert cuda.allocator.requested_bytes - before == n_bytes


def test_a_torch_with_cuda_needs_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is one touched that is there: fake tensors wake none, and where there is none its driver is not asked."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(fake_tensor, "init_gpu_context", lambda _: pytest.fail("a GPU was woken"))
    with device() as cuda:
        kept = torch.arange(8, device="cuda")[2:].to("cpu").to("cuda")
        assert kept.nonzero().shape == (6, 1)
        assert cuda.allocator.requested_bytes >= kept.nbytes


def test_a_backward_pass_is_refused() -> None:
    """Rather than counted wrong."""
    with device(), pytest.raises(NotImplementedError, match="for inference"):
        nn.Linear(4, 4, device="cuda")(torch.zeros(1, 4, device="cuda")).sum().backward()


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_allocator_settings_are_refused_not_ignored(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """expandable_segments would change every figure of what is reserved, and no caching all others."""
    monkeypatch.setenv(name, "expandable_segments:True")
    with pytest.raises(ValueError, match="expandable_segments"):
        device()
    monkeypatch.delenv(name)
    monkeypatch.setenv("PYTORCH_NO_CUDA_MEMORY_CACHING", "1")
    with pytest.raises(ValueError, match="PYTORCH_NO_CUDA_MEMORY_CACHING: simulated CUDA models a caching allocator"):
        device()


def test_composite_operations_are_taken_apart_under_inference_mode_too() -> None:
    """A matrix product of four dimensions copies what it expands; that shows in the peak either way."""
    peaks = []
    for mode in (torch.inference_mode, torch.no_grad):
        with device() as cuda, mode():
            first, second = torch.zeros(4, 8, 64, 32, device="cuda"), torch.zeros(8, 32, 64, device="cuda")
            cuda.allocator.reset_peak()
            torch.matmul(first, second)
            peaks.append(cuda.allocator.stats.requested_bytes.peak)
    assert peaks[0] == peaks[1] > (4 * 8 * 64 * 32 + 8 * 32 * 64 + 4 * 8 * 64 * 64) * 4


def test_a_replay_on_it_is_exact_judged_and_explained() -> None:
    """The same calls as on a GPU: a leak ends in growth of so many bytes, and names the line and the list."""
    kept: list[torch.Tensor] = []
    meter = SimulatedCudaMeter(device())
    stable = vram.replay(lambda n: torch.zeros(n, device="cuda"), [10, 10_000], laps=3, meters=[meter])
    vram.assert_stable(stable)
    assert stable.exact == stable.channels.keys()
    assert stable.environment["device"] == "simulated 8GiB"
    leak = vram.replay(lambda n: kept.append(torch.zeros(n, device="cuda")), [1000] * 5, meters=[meter])
    with pytest.raises(vram.MemoryGrowth, match=r"requested\) grows by 4,000 B a sample"):
        vram.assert_stable(leak)
