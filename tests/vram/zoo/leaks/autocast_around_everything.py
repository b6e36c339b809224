"""One autocast block around all requests: its cache keeps a cast of each request's own adapter."""
# expect: grows
# holder: autocast's cache of casted weights, which is cleared where the outermost torch.autocast block ends, or by *

import pytest
import torch


@pytest.fixture(autouse=True)
def mixed_precision():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        yield


def answer(_):
    adapter = torch.nn.Linear(64, 64, bias=False)  # here
    return adapter(torch.ones(1, 64)).sum().item()


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, range(20)))
