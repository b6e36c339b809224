"""A collate function keeps every batch it made, so that pinned memory is not given back too early."""
# expect: grows
# holder: list `kept` (* items), attribute of Collate `collate_fn`, attribute of DataLoader `LOADER`,
#   global of module *

import torch
from torch.utils.data import DataLoader


class Collate:
    def __init__(self):
        self.kept = []

    def __call__(self, rows):
        batch = torch.stack(rows)  # here
        self.kept.append(batch)
        return batch


LOADER = DataLoader([torch.ones(16) * n for n in range(4)], batch_size=4, collate_fn=Collate())


def epoch(_):
    return sum(float(batch.sum()) for batch in LOADER)


def test_epochs(vram):
    vram.assert_stable(vram.replay(epoch, range(20)))
