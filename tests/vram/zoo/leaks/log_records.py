"""A handler that buffers records keeps their arguments; one of them is a tensor."""
# expect: grows
# holder: tuple `args` (2 items), attribute of LogRecord in list `buffer` *,
#   attribute of MemoryHandler `HANDLER`, global *

import logging
import logging.handlers

import torch

HANDLER = logging.handlers.MemoryHandler(capacity=10**6)
LOG = logging.getLogger("zoo")
LOG.propagate = False
LOG.setLevel(logging.DEBUG)
LOG.addHandler(HANDLER)


def answer(length):
    logits = torch.zeros(length, 4)  # here
    LOG.debug("sample %d: %s", length, logits)


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, range(1, 21)))
    LOG.removeHandler(HANDLER)
