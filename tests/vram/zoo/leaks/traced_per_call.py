"""Each call traces its function anew, with a table of its own as a constant: torch.jit keeps all of them."""
# expect: grows
# holder: constant of traced function *: torch.jit keeps every traced function for good

import pytest
import torch


def answer(length):
    table = torch.arange(1000.0)  # here
    scaled = torch.jit.trace(lambda hidden: hidden * table, torch.ones(1000), check_trace=False)
    return scaled(torch.ones(1000))[:length].sum().item()


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
def test_answers(vram):
    vram.assert_stable(vram.replay(answer, range(1, 21)))
