"""Settings of the allocator: the same figures and errors as PyTorch's own allocator on a runtime without a card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.cardless.allocations import SCENARIOS, Scenario, compared, rows, without_process
from tests.vram.simulated.devices import device
from vram.simulated import cuda_api
from vram.simulated.allocator import CachingAllocator, SimulatedOutOfMemory
from vram.simulated.allocator_settings import Settings, environment_settings
from vram.simulated.cuda_api import memory_stats

EVIDENCE = json.loads((Path(__file__).parents[3] / "ci" / "evidence" / "allocator.json").read_text(encoding="utf-8"))


class Model:
    """The model, as the requests are made to it."""

    def __init__(self, scenario: Scenario) -> None:
        total_bytes = EVIDENCE["card_bytes"]
        self.card = CachingAllocator(total_bytes, total_bytes - EVIDENCE["free_bytes"])
        self.set_to(scenario.settings)
        if scenario.fraction is not None:
            self.card.allowed_bytes = int(scenario.fraction * total_bytes)

    def set_to(self, settings: str) -> None:
        self.card.settings = self.card.settings.set_to(settings, by_call=True)

    def malloc(self, n_bytes: int, stream: int) -> Any:
        try:
            return self.card.malloc(n_bytes, stream)
        except SimulatedOutOfMemory as error:
            return without_process(str(error))

    def free(self, block: Any) -> None:
        self.card.free(block)

    def record_stream(self, block: Any, stream: int) -> None:
        self.card.record_stream(block, stream)

    def empty_cache(self) -> None:
        self.card.empty_cache()

    def reset_peaks(self) -> None:
        self.card.reset_peak()

    def figures(self) -> dict[str, int]:
        return compared(memory_stats(self.card))


@pytest.mark.parametrize(
    ("scenario", "recorded"),
    list(zip(SCENARIOS, EVIDENCE["scenarios"], strict=True)),
    ids=[str(each) for each in SCENARIOS],
)
def test_every_figure_is_as_pytorch_says_it(scenario: Scenario, recorded: list[list[int]]) -> None:
    """After each of 900 random requests: all of `memory_stats`, by pool, and the words of each error, as a checksum."""
    assert list(rows(Model(scenario), scenario)) == recorded


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_split_size_mb:19", "max_split_size_mb must be a number of MiB, at least 20, got 19"),
        ("large_segment_size_mb:40,max_split_size_mb:39", "at least 40, got 39"),
        ("max_split_size_mb:many", "got many"),
        ("max_non_split_rounding_mb:2", "max_non_split_rounding_mb must be a number of MiB, at least 20"),
        ("large_segment_size_mb:10", "large_segment_size_mb must be a number of MiB, at least 11"),
        ("large_segment_size_mb:21", "must be even"),
        ("garbage_collection_threshold:1.0", "garbage_collection_threshold must be between 0 and 1, got 1.0"),
        ("roundup_power2_divisions:3", "roundup_power2_divisions must be made of powers of two, got 3"),
        ("roundup_power2_divisions:[24:2]", "got 24"),
        ("per_process_memory_fraction:2", "per_process_memory_fraction must be between 0 and 1"),
    ],
)
def test_a_value_that_pytorch_does_not_take_is_an_error(text: str, message: str) -> None:
    """PyTorch refuses them too, but for an odd size of segments, which ends within a page of the driver."""
    with pytest.raises(ValueError, match=message):
        Settings().set_to(text)


def test_a_call_keeps_what_it_does_not_name_or_not() -> None:
    """The size of large segments stays; splitting, rounding and collecting are the default ones again."""
    first = Settings().set_to("large_segment_size_mb:40,max_split_size_mb:64,roundup_power2_divisions:4")
    assert first.set_to("garbage_collection_threshold:0.5") == Settings(
        large_segment_bytes=40 * 2**20, rounding_bytes=40 * 2**20, collect_from=0.5
    )
    with pytest.raises(ValueError, match=r"per_process_memory_fraction:0\.5"):  # it would have no effect
        first.set_to("per_process_memory_fraction:0.5", by_call=True)


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_settings_of_the_environment_are_the_card_s(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Its figures, its words, and its facts, by which recordings are compared."""
    monkeypatch.setenv(name, "roundup_power2_divisions:1, max_split_size_mb:256,per_process_memory_fraction:0.5")
    with device() as cuda:
        assert str(cuda.allocator.settings).startswith("max_split_bytes=268435456, divisions=(1, ")
        assert torch.cuda.memory_stats()["max_split_size"] == 256 * 2**20
        assert torch.cuda.get_per_process_memory_fraction() == 0.5
        with pytest.raises(torch.OutOfMemoryError, match=r"4\.00 GiB allowed; "):
            torch.empty(5 * 2**30, dtype=torch.uint8, device="cuda")


def test_an_older_torch_has_other_rules_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are refused with it; the default ones are the same."""
    monkeypatch.setattr(cuda_api, "release", lambda: (2, 11))
    with device():
        torch.cuda.memory._set_allocator_settings("backend:native")
        with pytest.raises(ValueError, match=r"as torch 2\.13 has them, got divisions=.* with torch .*: take them out"):
            torch.cuda.memory._set_allocator_settings("roundup_power2_divisions:4")
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "max_split_size_mb:100")
    with pytest.raises(ValueError, match="got max_split_bytes=104857600 with torch"):
        device()


def test_two_variables_that_differ_are_refused() -> None:
    """Parts of PyTorch prefer one, parts the other."""
    both = {"PYTORCH_ALLOC_CONF": "max_split_size_mb:100", "PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:200"}
    with pytest.raises(ValueError, match="must not differ: set one of them"):
        environment_settings(both)
    assert environment_settings(dict.fromkeys(both, "max_split_size_mb:100")).max_split_bytes == 100 * 2**20


def test_the_summary_has_both_pools() -> None:
    """torch's own table, of the card's figures; and the same figures nested."""
    with device():
        kept = torch.zeros(3 * 2**20, device="cuda"), torch.zeros(3, device="cuda")
        lines = torch.cuda.memory_summary().splitlines()
        first = next(index for index, line in enumerate(lines) if "Allocated memory" in line)
        assert [line.split("|")[2].strip() for line in lines[first : first + 3]] == ["12288 KiB", "12288 KiB", "0 KiB"]
        nested = torch.cuda.memory_stats_as_nested_dict()
        assert nested["allocated_bytes"]["small_pool"]["current"] == 512
        assert nested["segment"]["large_pool"]["allocated"] == len(kept) - 1
