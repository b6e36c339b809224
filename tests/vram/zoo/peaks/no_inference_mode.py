"""Without `inference_mode` every layer's activations wait for a backward pass that never comes."""
# expect: PeakExceeded
# says: vram_limit: peak *, above what was alive before the test

import pytest
import torch
from torch import nn

MODEL = nn.Sequential(*[layer for _ in range(8) for layer in (nn.Linear(64, 64), nn.Sigmoid())])


@pytest.mark.vram_limit("200 KiB")  # [256, 64] float32 is 64 KiB: input, one in, one out
def test_forward():
    MODEL(torch.ones(256, 64))
