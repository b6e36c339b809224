"""Results go to a queue of another process, which never reads it: each stays in shared memory, behind an open file."""
# expect: stable
# host: grows

import fcntl
import time
import weakref

import torch
import torch.multiprocessing

RESULTS = torch.multiprocessing.get_context("spawn").Queue()
fcntl.fcntl(RESULTS._writer, fcntl.F_SETPIPE_SZ, 2**20)  # else its buffer fills after some 150, as a list would


def answer(number):
    # 2 MiB, filled where it stays: pages that malloc keeps for a while would count as well.
    result = torch.empty(2**19).share_memory_().fill_(number)
    alive = weakref.ref(result)
    RESULTS.put(result)
    del result
    while alive() is not None:  # until the queue's own thread has moved it
        time.sleep(0.001)


def test_answers(vram):
    RESULTS.cancel_join_thread()
    vram.assert_stable(vram.replay(answer, range(20)))
