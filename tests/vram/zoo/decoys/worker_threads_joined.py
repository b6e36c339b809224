"""Each question is answered by two threads, which end with it."""
# expect: stable

import threading

import torch


def answer(length):
    results = []
    threads = [threading.Thread(target=lambda: results.append(torch.zeros(length, 16).sum())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(results)


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, range(1, 21)))
