"""A mock in place of the tracker remembers the arguments of all its calls."""
# expect: grows
# holder: tuple (1 item) in _Call (3 items) in _CallList `*` (* items), attribute of MagicMock `TRACKER`,
#   global of module test_mock_call_arguments

from unittest.mock import MagicMock

import torch

TRACKER = MagicMock()


def answer(length):
    TRACKER.log(torch.zeros(length))  # here


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, range(1, 21)))
