import torch


def test_himap(vram):
    vram.assert_stable(vram.replay(lambda n: torch.zeros(n).sum(), [1024, 2048], name="himap"))
