"""Image features are copied twice on their way, once by `clone`, once by `contiguous`."""
# expect: PeakExceeded
# says: vram_limit: peak *, above what was alive before the test

import pytest
import torch


def project(features):
    copied = features.clone()
    return copied.transpose(0, 1).contiguous()


@pytest.mark.vram_limit("64 KiB")  # [128, 128] float32: one copy
def test_projection(features):
    project(features)


@pytest.fixture
def features():
    return torch.ones(128, 128)
