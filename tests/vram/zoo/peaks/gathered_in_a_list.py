"""Chunks are gathered in a list and joined at the end, where they could be written in place."""
# expect: PeakExceeded
# says: vram_limit: peak *524,288 B*

import pytest
import torch


@pytest.mark.vram_limit("288 KiB")  # the result is 256 KiB, a chunk 32 KiB
def test_encoding():
    chunks = [torch.full((8192,), float(number)) for number in range(8)]
    torch.cat(chunks)
