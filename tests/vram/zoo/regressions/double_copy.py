"""Features are copied once more on their way."""
# category: activations
# module: Project

import torch

SAMPLE = torch.ones(128, 128)


class Project(torch.nn.Module):
    def forward(self, features):
        doubled = features * 2
        copied = doubled  # base
        copied = doubled.clone()  # head # here
        return copied.transpose(0, 1).contiguous()


MODEL = Project()


@torch.inference_mode()
def step(x):
    return MODEL(x)
