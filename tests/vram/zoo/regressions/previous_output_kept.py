"""The output of the batch before is alive while the next is made."""
# category: activations
# module: Linear
# way out: previous output

import torch

SAMPLE = [torch.ones(64, 32) for _ in range(3)]
MODEL = torch.nn.Linear(32, 256)


@torch.inference_mode()
def step(batches):
    for batch in batches:
        output = MODEL(batch)  # here
        output.sum()
        del output  # base
