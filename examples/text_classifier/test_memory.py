"""Neither answering nor training grows, and one answer needs little beside the model."""

import pytest
import torch
from classifier import Classifier, classify, train_step

TEXTS = ["cheap flights to Oslo", "the match ended 2:2", "shares fell by a third", "rain until Friday"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Classifier()


def test_answering_does_not_grow(model, vram):
    recording = vram.replay(lambda text: classify(model, text), TEXTS, name="classify")
    vram.assert_stable(recording)
    vram.assert_peak(recording, "64 KiB", above_start=True)


def test_training_does_not_grow(vram):
    model = Classifier()
    optimizer = torch.optim.AdamW(model.parameters())
    recording = vram.replay(lambda text: train_step(model, optimizer, text, label=1), TEXTS, name="train")
    vram.assert_stable(recording)


@pytest.mark.vram_limit("64 KiB")
@pytest.mark.vram_leak_free
def test_one_answer(model):
    assert 0 <= classify(model, "snow on the hills") < 4
