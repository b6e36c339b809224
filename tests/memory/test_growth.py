"""Does memory grow from sample to sample, or from token to token? Does it fit?"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from himap import HimapLlavaForConditionalGeneration
from tests.memory.probes import assert_tokens_cost, cache_bytes_per_token
from vram import Budget, Recording
from vram.session import VramSession


def test_memory_does_not_grow(vram: VramSession, recording: Recording) -> None:
    """Live bytes and peak are stable over every lap of the samples, or moved during warm-up only."""
    vram.assert_stable(recording)


@pytest.mark.parametrize("channel", ["requested", "requested_peak"])
def test_channel_is_stable(vram: VramSession, recording: Recording, channel: str) -> None:
    """Live memory does not grow, and neither does the peak; each is measured, and judged by itself."""
    verdict = vram.judge(recording)[channel]
    assert verdict.status in ("stable", "plateau"), verdict.reason


def test_peak_is_within_its_budget(
    vram: VramSession, recording: Recording, mode: str, budget_of: Callable[[str], Budget], others_bytes: int
) -> None:
    """The highest peak of any sample, model included, is not one byte over the reviewed budget."""
    vram.assert_peak(recording, budget_of(mode), besides_bytes=others_bytes)


def test_driver_memory_does_not_grow(vram: VramSession, recording: Recording) -> None:
    """The driver's count for this process, beside what PyTorch reserved, does not grow either."""
    if "driver" not in recording.channels:
        pytest.skip(f"driver not measured: {recording.absent.get('driver', 'no meter reads it')}")
    verdict = vram.judge(recording)["driver"]
    assert verdict.status != "grows", verdict.reason


def test_a_token_costs_its_cache_and_nothing_else(
    recording: Recording, model: HimapLlavaForConditionalGeneration
) -> None:
    """Within one answer, in every mode, each token adds the KV cache of that one token and at most 32 B."""
    assert_tokens_cost(recording, cache_bytes_per_token(model.config.text_config, model.dtype))
