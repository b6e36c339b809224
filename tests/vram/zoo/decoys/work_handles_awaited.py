"""The handles of asynchronous collectives are waited for and let go of; the log keeps whether they were successful."""
# expect: stable

import pytest
import torch
from torch import distributed

LOG = []


@pytest.fixture(autouse=True)
def group():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def reduce(step):
    gradients = torch.ones(1024)
    LOG.append({"step": step, "done": distributed.all_reduce(gradients, async_op=True).wait()})


def test_reduction(vram):
    vram.assert_stable(vram.replay(reduce, range(20)))
