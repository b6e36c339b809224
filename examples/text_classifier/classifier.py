"""A text classifier: byte embeddings, a GRU, a linear layer; and the two things that one does with it."""

import torch
from torch import nn


class Classifier(nn.Module):
    def __init__(self, classes: int = 4, width: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, width)
        self.encoder = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, classes)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        encoded, _ = self.encoder(self.embedding(text))
        return self.head(encoded[:, -1])


def encode(text: str, device: str = "cpu") -> torch.Tensor:
    """Its bytes, as a batch of one."""
    return torch.tensor([list(text.encode())], device=device)


@torch.inference_mode()
def classify(model: Classifier, text: str) -> int:
    """The number of the most likely class."""
    return int(model(encode(text)).argmax())


def train_step(model: Classifier, optimizer: torch.optim.Optimizer, text: str, label: int) -> float:
    """One step of training; returns the loss."""
    loss = nn.functional.cross_entropy(model(encode(text)), torch.tensor([label]))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()
