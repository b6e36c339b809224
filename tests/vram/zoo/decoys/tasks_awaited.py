"""Requests are served side by side, and each is let go of when it is answered."""
# expect: stable

import asyncio

import torch


async def encode(length):
    hidden = torch.zeros(length, 16)
    await asyncio.sleep(0)
    return float(hidden.sum())


async def serve(length):
    return sum(await asyncio.gather(*(encode(length) for _ in range(3))))


def test_answers(vram):
    vram.assert_stable(vram.replay(lambda length: asyncio.run(serve(length)), range(1, 21)))
