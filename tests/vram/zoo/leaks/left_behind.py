"""A test that is to leave nothing behind warms a module's cache."""
# expect: MemoryLeak
# says: vram_leak_free: the test keeps 4,096 B (4.00 KiB)*held by: *dict `CACHE` (1 item), global of module test_*

import pytest
import torch

CACHE = {}


@pytest.mark.vram_leak_free
def test_forward():
    CACHE["rope"] = torch.zeros(1024)
