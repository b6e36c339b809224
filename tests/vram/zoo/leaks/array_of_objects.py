"""Results go into a NumPy array of objects, of which Python's collector knows nothing."""
# expect: grows
# holder: key `logits` of dict (1 item) in NumPy array `RESULTS` (* items), global of module test_array_of_objects

import numpy as np
import torch

RESULTS = np.empty(0, dtype=object)


def answer(length):
    global RESULTS
    RESULTS = np.append(RESULTS, {"logits": torch.zeros(length)})  # here


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, range(1, 21)))
