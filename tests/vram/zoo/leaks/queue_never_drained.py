"""Results go into a queue that nobody reads any more."""
# expect: grows
# holder: tuple (2 items) in deque `queue` (* items), attribute of Queue `RESULTS`,
#   global of module test_queue_never_drained

import queue
import threading

import torch

RESULTS = queue.Queue()


def work(length):
    RESULTS.put((length, torch.zeros(length)))  # here


def answer(length):
    worker = threading.Thread(target=work, args=(length,))
    worker.start()
    worker.join()


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, range(1, 21)))
