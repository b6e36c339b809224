"""The ten answers with the best scores are kept, of any length: a better one takes the place of the worst."""
# expect: plateau

import heapq
import random

import torch

CHANCE = random.Random(2)
BEST = []


def answer(number):
    hidden = torch.zeros(CHANCE.randrange(100, 4000))
    scored = (CHANCE.random(), hidden)
    if len(BEST) < 10:
        heapq.heappush(BEST, scored)
    else:
        heapq.heappushpop(BEST, scored)


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, range(10)))
