"""A marked test makes, uses and drops what it needs, within its limit."""
# expect: passed

import pytest
import torch
from tiny import llama, prompts


@pytest.fixture(scope="module")
def model():
    return llama()


@pytest.mark.vram_limit("256 KiB")
@pytest.mark.vram_leak_free
def test_forward(model):
    with torch.inference_mode():
        assert model(prompts()[0]).logits.isfinite().all()
