"""Files inside a simulation: weights that are read, to the card or to main memory, and what is not saved."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import nn

from tests.vram.simulated.devices import device
from vram.simulated.context import DEVICE
from vram.simulated.known_values import UnknownValue

TO_THE_CARD: dict[str, Any] = {
    "a name": "cuda",
    "a name with a number": "cuda:0",
    "a device": torch.device("cuda"),
    "a dictionary": {"cpu": "cuda:0"},
    "a function that moves": lambda storage, _: storage.cuda(),
    "a function that names": lambda _, __: "cuda:0",
}
TO_MAIN_MEMORY: dict[str, Any] = {
    "nothing": None,
    "a name": "cpu",
    "a dictionary": {"cuda:0": "cpu"},
    "a function that keeps": lambda storage, _: storage,
    "a function that keeps out": lambda _, __: None,
}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """1,024 bytes of weights, of which there are two views, and 32 of integers."""
    weight = torch.randn(16, 16)
    content = {"weight": weight, "transposed": weight.t(), "steps": torch.arange(4), "bias": nn.Parameter(weight[0])}
    torch.save(content, tmp_path / "saved.pt")
    return tmp_path / "saved.pt"


@pytest.mark.parametrize("where", TO_THE_CARD.values(), ids=TO_THE_CARD)
def test_what_is_loaded_to_the_card_is_counted_there_once(where: Any, saved: Path) -> None:
    """However that is said; integers are known, and what is shared is shared."""
    with device() as cuda:
        loaded = torch.load(saved, map_location=where)
        assert {tensor.device for tensor in loaded.values()} == {DEVICE}
        assert cuda.allocator.requested_bytes == torch.cuda.memory_stats()["requested_bytes.all.peak"] == 1024 + 32
        assert loaded["steps"].tolist() == [0, 1, 2, 3]
        assert (loaded["transposed"].stride(), type(loaded["bias"])) == ((1, 16), type(nn.Parameter(loaded["bias"])))
        with pytest.raises(UnknownValue):
            loaded["weight"].tolist()
        del loaded
        assert cuda.allocator.requested_bytes == 0


@pytest.mark.parametrize("where", TO_MAIN_MEMORY.values(), ids=TO_MAIN_MEMORY)
def test_what_is_loaded_to_main_memory_is_real(where: Any, saved: Path) -> None:
    """With all that it holds; a file can be written anew where it was read."""
    with device() as cuda:
        loaded = torch.load(saved, map_location=where)
        assert loaded["weight"].numpy().shape == (16, 16)
        assert loaded["weight"].tolist() == loaded["transposed"].numpy().T.tolist()
        assert cuda.allocator.requested_bytes == 0
        torch.save(loaded, saved)
        linear = nn.Linear(16, 16, bias=False, device="cuda")
        linear.load_state_dict({"weight": loaded["weight"]})
        assert cuda.allocator.requested_bytes == 1024


@pytest.mark.parametrize("where", ["cuda:1", torch.device("cuda", 1), {"cpu": "cuda:1"}, lambda it, _: it.cuda(1)])
def test_nothing_is_loaded_to_another_card(where: Any, saved: Path) -> None:
    """Where it would be counted nowhere."""
    with device(), pytest.raises(RuntimeError, match=r"invalid device ordinal: .*1, of one simulated card"):
        torch.load(saved, map_location=where)


def in_a_thread(load: Callable[[], Any]) -> Any:
    loaded: list[Any] = []
    thread = threading.Thread(target=lambda: loaded.append(load()))
    thread.start()
    thread.join()
    return loaded[0]


def test_threads_load_too(saved: Path) -> None:
    """To the card and to main memory."""
    with device() as cuda:
        real = in_a_thread(lambda: torch.load(saved))
        there = in_a_thread(lambda: torch.load(saved, map_location="cuda"))
        assert cuda.allocator.requested_bytes == 1024 + 32
        assert there["steps"].tolist() == real["steps"].tolist() == [0, 1, 2, 3]


def test_files_of_older_kinds_and_open_ones_are_loaded(saved: Path, tmp_path: Path) -> None:
    """Values that are read after their tensors are made are unknown."""
    torch.save({"steps": torch.arange(4)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with device() as cuda:
        there = torch.load(tmp_path / "old.pt", map_location="cuda")
        assert cuda.allocator.requested_bytes == 32
        with pytest.raises(UnknownValue):
            there["steps"].tolist()
        assert torch.load(tmp_path / "old.pt")["steps"].tolist() == [0, 1, 2, 3]
        with saved.open("rb") as opened:
            assert torch.load(opened, map_location="cuda")["steps"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.uint16])
def test_dtypes_that_are_rebuilt_otherwise_are_refused_on_the_card(dtype: torch.dtype, tmp_path: Path) -> None:
    """Rather than left in main memory."""
    torch.save({"weight": torch.zeros(8, dtype=dtype)}, tmp_path / "eight.pt")
    with device():
        assert torch.load(tmp_path / "eight.pt")["weight"].dtype is dtype
        with pytest.raises(NotImplementedError, match="load it to the CPU"):
            torch.load(tmp_path / "eight.pt", map_location="cuda")


def test_a_storage_is_moved_to_the_card_and_ends_there() -> None:
    """As many bytes as it has."""
    real = torch.arange(4)
    with device() as cuda:
        there = real.untyped_storage().cuda()
        assert cuda.allocator.requested_bytes == there.nbytes() == 32
        del there
        assert cuda.allocator.requested_bytes == 0


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
    """Through a `safe_open` that was imported before."""
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


def test_what_is_imported_inside_reads_files_too_and_keeps_nothing(tmp_path: Path, forked: None) -> None:
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


def test_what_has_no_bytes_is_not_saved(tmp_path: Path) -> None:
    """Real tensors are."""
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
