"""An autocast block around each request: its cache of casted weights ends with it."""
# expect: stable

import torch


def answer(_):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        adapter = torch.nn.Linear(64, 64, bias=False)
        return adapter(torch.ones(1, 64)).sum().item()


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, range(20)))
