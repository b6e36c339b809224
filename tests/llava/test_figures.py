"""7B models on a simulated card: what was measured before, with other means, at 627 tokens in float16.

Figures are MiB of `max_memory_allocated` without cuBLAS's workspace, to two digits, by a tracker of storages over a
plain model of the allocator.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from llava.checkpoint import empty_model
from llava.forecast_config import config_of
from vram.cards import find_card
from vram.simulated.context import DEVICE, SimulatedCuda

MIB = 2**20
N = 627
pytestmark = pytest.mark.filterwarnings("ignore:simulated CUDA is tested with torch")


def llava_inputs(model: Any) -> dict[str, Any]:
    ids = torch.full((1, N), 1)
    ids[:, 35 : 35 + 576] = model.config.image_token_id
    return {"input_ids": ids.to(DEVICE), "pixel_values": torch.zeros(1, 3, 336, 336).half().to(DEVICE)}


@pytest.mark.share(2)
@pytest.mark.skipif(
    not transformers.__version__.startswith("5.23."), reason="measured with transformers 5.23, whose CLIP holds its own"
)
@pytest.mark.parametrize(
    ("attention", "use_cache", "expected"),
    [("eager", True, (13916.21, 13796.99, 13792.96)), ("sdpa", False, (13547.18, 13550.63))],
)
def test_llava_needs_what_was_measured(attention: str, use_cache: bool, expected: tuple[float, ...]) -> None:
    """Weights to the byte; the peak of the prompt and of the tokens after it within 0.05 %.

    Takes long, as the passes go through all 32 layers.
    """
    cuda = SimulatedCuda("80GiB", cublas_workspace=False)
    peaks = []
    with cuda, torch.inference_mode():
        model = empty_model(config_of("7b"), DEVICE, dtype=torch.float16, attn_implementation=attention).eval()
        assert sum(weight.nbytes for weight in model.parameters()) == 14_126_854_144
        inputs, cache = llava_inputs(model), None
        for _ in expected:
            cuda.allocator.reset_peak()
            output = model(**inputs, use_cache=use_cache, past_key_values=cache, logits_to_keep=1)
            peaks.append(torch.cuda.max_memory_allocated() / MIB)
            token = output.logits[:, -1].argmax(-1, keepdim=True)
            cache = output.past_key_values
            if use_cache:
                inputs = {"input_ids": token}
            else:
                inputs["input_ids"] = torch.cat([inputs["input_ids"], token], dim=1)
            del output
    assert peaks == [pytest.approx(figure, rel=0.0005) for figure in expected]


def test_llama_dies_at_the_attention_softmax() -> None:
    """On a card with 12960 MiB for PyTorch the prompt fails where the incident did, asking what it asked."""
    card = find_card(f"{12960 + find_card('24GiB').context_bytes // MIB} MiB")
    cuda = SimulatedCuda(card, cublas_workspace=False)
    config = LlamaConfig(max_position_embeddings=4096, attn_implementation="eager")
    with cuda, torch.inference_mode():
        with torch.device(DEVICE):
            torch.set_default_dtype(torch.float16)
            try:
                model = LlamaForCausalLM(config).eval()
            finally:
                torch.set_default_dtype(torch.float32)
        assert sum(weight.nbytes for weight in model.parameters()) == 13_476_831_232
        with pytest.raises(torch.OutOfMemoryError, match=r"Tried to allocate 48\.00 MiB\.") as raised:
            model(torch.ones(1, N, dtype=torch.long).to(DEVICE))
    assert any(entry.name == "eager_attention_forward" for entry in raised.traceback)
