"""A progress bar goes along, and shows the last loss."""
# expect: stable
# suggests: previous output

import io

import torch
from tqdm import tqdm


def epoch(length):
    shown = io.StringIO()
    with tqdm(range(4), file=shown, mininterval=0) as bar:
        for _ in bar:
            loss = torch.ones(length, 8).sum()
            bar.set_postfix(loss=float(loss))


def test_epochs(vram):
    vram.assert_stable(vram.replay(epoch, range(1, 11)))
