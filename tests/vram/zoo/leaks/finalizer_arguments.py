"""A finalizer of a long-lived object is given the tensor it is to log: it keeps it until then."""
# expect: grows
# holder: tuple `args` (1 item), attribute of * of dict `_registry` (* items),
#   class attribute of class weakref.finalize

import weakref

import torch


class Server:
    pass


SERVER = Server()


def log(scores):
    return scores.mean()


def answer(length):
    weakref.finalize(SERVER, log, torch.zeros(length)).atexit = False  # here


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, range(1, 21)))
