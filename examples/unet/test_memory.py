"""The same test on a GPU, on the CPU and on a simulated card: segmenting does not grow, and fits its limit."""

import pytest
import torch
from unet import UNet

SIZES = [64, 128, 96]


@pytest.fixture(scope="module")
def model(vram):
    with vram.on_device():
        return UNet().to(vram.torch_device).eval()


def test_segmenting_fits(model, vram):
    @torch.inference_mode()
    def segment(size):
        return model(torch.zeros(1, 3, size, size, device=vram.torch_device))

    recording = vram.replay(segment, SIZES, name="segment")
    vram.assert_stable(recording)
    vram.assert_peak(recording, "8 MiB", above_start=True)  # beside the weights and what CUDA keeps


def test_half_precision_saves(vram):
    def prepared(dtype):
        with vram.on_device():
            model = UNet().to(vram.torch_device, dtype).eval()

        @torch.inference_mode()
        def segment(size):
            return model(torch.zeros(1, 3, size, size, device=vram.torch_device, dtype=dtype))

        return vram.replay(segment, SIZES, laps=1, name=f"segment, {dtype}")

    full, half = prepared(torch.float32), prepared(torch.bfloat16)
    vram.assert_ratio(half, full, "requested_peak", at_most=0.6, above_start=True)
