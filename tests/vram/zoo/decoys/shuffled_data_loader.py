"""A shuffling loader gives batches of any length in any order: a lap repeats the epochs, not their batches."""
# expect: stable

import torch
from torch.utils.data import DataLoader

ROWS = [torch.ones(length) for length in range(1, 17)]
LOADER = DataLoader(ROWS, batch_size=4, shuffle=True, collate_fn=torch.nn.utils.rnn.pad_sequence)


def epoch(_):
    return sum(float(batch.sum()) for batch in LOADER)


def test_epochs(vram):
    torch.manual_seed(0)
    vram.assert_stable(vram.replay(epoch, range(10)))
