"""A question with a stop word adds its criterion to the list that all questions share."""
# expect: grows
# holder: attribute `words` of StopAt in StoppingCriteriaList `CRITERIA` (* items), global of module test_*

import torch
from tiny import llama, prompts
from transformers import StoppingCriteria, StoppingCriteriaList

MODEL = llama()
CRITERIA = StoppingCriteriaList()


class StopAt(StoppingCriteria):
    def __init__(self, ids):
        self.words = ids.repeat(8, 1)  # here

    def __call__(self, ids, scores, **kwargs):
        return torch.zeros(len(ids), dtype=torch.bool)


@torch.inference_mode()
def answer(ids):
    if ids.shape[1] == 12:
        CRITERIA.append(StopAt(ids))
    return MODEL.generate(
        ids, attention_mask=torch.ones_like(ids), stopping_criteria=CRITERIA, max_new_tokens=1, do_sample=False
    )


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, prompts(count=5)))
