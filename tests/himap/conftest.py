"""Models of these tests: the golden LLaMA and a small random LLaVA, with every flag off at the start of each test."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch

from himap import HimapLlamaForCausalLM, HimapLlavaForConditionalGeneration
from himap.settings import FLAGS
from tests.himap.models import golden_llama, random_llava
from vram.replaying.collector import cheap_collections


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors this small gain nothing from threads, which on busy cores wait for each other 30 times longer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package", autouse=True)
def _hidden() -> Iterator[None]:
    """Hide what was imported from the collector: each measurement would look through a million objects again."""
    with cheap_collections():
        yield


@pytest.fixture(scope="module", autouse=True)
def _small_heap(_hidden: None) -> None:
    """Hide what earlier modules of tests have left: libraries and compiled code, 300,000 objects in the end."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="session")
def _golden_llama() -> HimapLlamaForCausalLM:
    return golden_llama(HimapLlamaForCausalLM)


@pytest.fixture
def llama(_golden_llama: HimapLlamaForCausalLM) -> Iterator[HimapLlamaForCausalLM]:
    """The golden model (6 layers), SDPA, every flag unset."""
    yield _golden_llama
    for flag in FLAGS:
        if hasattr(_golden_llama.config, flag):
            delattr(_golden_llama.config, flag)
    _golden_llama.set_attn_implementation("sdpa")


@pytest.fixture
def llava() -> HimapLlavaForConditionalGeneration:
    return random_llava()
