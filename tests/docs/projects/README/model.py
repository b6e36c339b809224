import torch

LAYERS = torch.nn.ModuleList(torch.nn.Linear(256, 256) for _ in range(4))
QUESTIONS = [24, 40, 32]
STATES = []


@torch.inference_mode()
def answer(length):
    hidden = torch.ones(length, 256)
    for layer in LAYERS:
        hidden = layer(hidden).relu()
    return hidden.mean().item()
