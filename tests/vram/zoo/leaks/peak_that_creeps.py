"""Nothing is kept, but each call works on a little more than the one before."""
# expect: grows
# holder: nobody
# says: answer: peak memory (requested_peak) grows by * a sample
# says: aten.zeros float32 [*..*]; freed again

import torch

TEXT = []


def answer(token):
    TEXT.append(token)
    return torch.zeros(64 * len(TEXT)).sum()  # here


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, range(20)))
