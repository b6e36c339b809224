"""Finished tasks stay in a set, for fear that the event loop forgets them; each keeps its result."""
# expect: grows
# holder: attribute `_result` of Task in set `TASKS` (* items), global of module test_asyncio_tasks_kept

import asyncio

import torch

TASKS = set()


async def encode(length):
    await asyncio.sleep(0)
    return torch.zeros(length)  # here


async def serve(length):
    task = asyncio.create_task(encode(length))
    TASKS.add(task)
    return float((await task).sum())


def test_answers(vram):
    vram.assert_stable(vram.replay(lambda length: asyncio.run(serve(length)), range(1, 21)))
