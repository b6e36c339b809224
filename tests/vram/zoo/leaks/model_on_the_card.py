"""The same with model and inputs where the fixture says: the answers that are kept are seen."""
# expect: grows
# holder: list `KEPT` (* items), global of module test_model_on_the_card
# device: simulated

import torch

KEPT = []


@torch.inference_mode()
def answer(score, batch):
    KEPT.append(score(batch))  # here


def test_answers(vram):
    with vram.on_device():
        score = torch.nn.Linear(64, 8, device=vram.torch_device)
        batches = [torch.zeros(length, 64, device=vram.torch_device) for length in range(1, 11)]
    vram.assert_stable(vram.replay(lambda batch: answer(score, batch), batches))
