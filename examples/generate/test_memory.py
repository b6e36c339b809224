"""Nothing stays from prompt to prompt, and a token adds its part of the KV cache."""

import numpy as np
import pytest
from answering import CONFIG, answer, load
from transformers.generation.streamers import BaseStreamer

PROMPTS = [[*range(length)] for length in (9, 30, 17)]
KV_CACHE_BYTES = 2 * CONFIG.num_hidden_layers * CONFIG.hidden_size * 4  # a key and a value of each layer, float32


@pytest.fixture(scope="module")
def model():
    return load()


class TokenMarks(BaseStreamer):
    """Takes a reading whenever `generate` has a token."""

    def __init__(self, vram):
        self.vram = vram

    def put(self, value):
        self.vram.mark("token")

    def end(self):
        pass


def test_generation(model, vram):
    recording = vram.replay(lambda prompt: answer(model, prompt, 12, TokenMarks(vram)), PROMPTS, name="generate")

    vram.assert_stable(recording)
    vram.assert_peak(recording, "1 MiB")
    for live_bytes in recording.marks["token"]["requested"][-1]:  # of the last lap: an array for each prompt
        added = np.diff(live_bytes[2:])  # the first reading is the prompt's, the second that of its first token
        assert KV_CACHE_BYTES <= added.min() <= added.max() <= KV_CACHE_BYTES + 64
