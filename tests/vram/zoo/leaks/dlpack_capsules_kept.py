"""Capsules for another framework are queued, and nobody consumes them."""
# expect: grows
# holder: DLPack capsule held by deque `exports` (* items), attribute of Exporter `EXPORTER`, global of *

import collections

import torch
from torch.utils.dlpack import to_dlpack


class Exporter:
    def __init__(self):
        self.exports = collections.deque()

    def export(self, length):
        self.exports.append(to_dlpack(torch.ones(length, 16)))  # here


EXPORTER = Exporter()


def test_exports(vram):
    vram.assert_stable(vram.replay(EXPORTER.export, range(1, 21)))
