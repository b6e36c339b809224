"""A field of a dataclass with slots collects what each evaluation saw."""
# expect: grows
# holder: list `seen` (* items), attribute of Statistics `STATISTICS`, global of module test_dataclass_field

from dataclasses import dataclass, field

import torch


@dataclass(slots=True)
class Statistics:
    count: int = 0
    seen: list = field(default_factory=list)


STATISTICS = Statistics()


def answer(length):
    STATISTICS.count += 1
    STATISTICS.seen.append(torch.zeros(length))  # here


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, range(1, 21)))
