"""The handles of asynchronous collectives are kept for a log: each keeps the tensors that it worked on."""
# expect: grows
# holder: Work of a collective held by key `work` of dict (2 items) in list `LOG` (* items), global of module *

import pytest
import torch
from torch import distributed

LOG = []


@pytest.fixture(autouse=True)
def group():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    LOG.clear()
    distributed.destroy_process_group()


def reduce(step):
    gradients = torch.ones(1024)  # here
    work = distributed.all_reduce(gradients, async_op=True)
    work.wait()
    LOG.append({"step": step, "work": work})


def test_reduction(vram):
    vram.assert_stable(vram.replay(reduce, range(20)))
