"""Every layer's hidden state is gathered for the output, where only the last is used: the failure names the line."""
# expect: PeakExceeded
# says: alive at the peak
# says: 512.00 KiB in 8: test_hidden_states_of_every_layer.py:* encode: aten.relu float32 [64, 256]

import pytest
import torch


def encode(hidden, layers=8):
    states = []
    for _ in range(layers):
        hidden = hidden.relu()
        states.append(hidden)
    return states[-1]


@pytest.mark.vram_limit("192 KiB")  # the input, and two states of 64 KiB
def test_encoding():
    encode(torch.ones(64, 256))
