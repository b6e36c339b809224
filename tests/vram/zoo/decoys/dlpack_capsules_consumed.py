"""Capsules for another framework are queued, and consumed before the next one comes."""
# expect: stable

import collections

import torch
from torch.utils.dlpack import from_dlpack, to_dlpack


class Exporter:
    def __init__(self):
        self.exports = collections.deque()

    def export(self, length):
        self.exports.append(to_dlpack(torch.ones(length, 16)))
        return float(from_dlpack(self.exports.popleft()).sum())


EXPORTER = Exporter()


def test_exports(vram):
    vram.assert_stable(vram.replay(EXPORTER.export, range(1, 21)))
