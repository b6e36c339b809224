"""The function is traced once, with its table as a constant."""
# expect: stable

import functools

import pytest
import torch


@functools.cache
def scaled():
    table = torch.arange(1000.0)
    return torch.jit.trace(lambda hidden: hidden * table, torch.ones(1000), check_trace=False)


def answer(length):
    return scaled()(torch.ones(1000))[:length].sum().item()


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
def test_answers(vram):
    vram.assert_stable(vram.replay(answer, range(1, 21)))
