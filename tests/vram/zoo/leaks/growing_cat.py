"""All embeddings so far are one tensor, made anew and larger by `torch.cat` each time."""
# expect: grows
# holder: attribute `all` of Index `INDEX`, global of module test_growing_cat

import torch


class Index:
    all = torch.zeros(0, 8)

    def add(self, embedding):
        self.all = torch.cat([self.all, embedding])  # here


INDEX = Index()


def test_indexing(vram):
    vram.assert_stable(vram.replay(INDEX.add, [torch.ones(n, 8) for n in range(1, 6)]))
