"""A small U-Net: three levels, with skip connections that keep the large tensors of the way down."""

import torch
from torch import nn


def block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU())


class UNet(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.down = nn.ModuleList([block(3, width), block(width, 2 * width)])
        self.middle = block(2 * width, 4 * width)
        self.up = nn.ModuleList([block(6 * width, 2 * width), block(3 * width, width)])
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        skips = []
        for down in self.down:
            image = down(image)
            skips.append(image)
            image = nn.functional.max_pool2d(image, 2)
        image = self.middle(image)
        for up in self.up:
            image = nn.functional.interpolate(image, scale_factor=2)
            image = up(torch.cat([image, skips.pop()], dim=1))
        return self.head(image)
