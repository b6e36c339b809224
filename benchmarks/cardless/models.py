"""Models of transformers' at small sizes, of random weights: each a step that answers, embeds or classifies."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor

from benchmarks.cardless.operations import Figures

Step = Callable[[], object]
TOKENS, VOCABULARY = 70, 1000
_SIZES: dict[str, int] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
_GROUPED = _SIZES | {"num_key_value_heads": 2}
_VISION = {"hidden_size": 192, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 512}
_WHISPER = {
    "vocab_size": VOCABULARY, "d_model": 256, "num_mel_bins": 80, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 512, "decoder_ffn_dim": 512,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip
_SAMPLED = {"do_sample": True, "top_k": 50, "top_p": 0.9, "temperature": 0.7}


def _ids(rows: int = 2) -> Tensor:
    return torch.full((rows, TOKENS), 5, dtype=torch.long, device="cuda")


def _placed(model: Any) -> Any:
    return model.half().eval().to("cuda")


def _answering(config: Any, **generation: Any) -> Callable[[], Step]:
    def make() -> Step:
        model, ids = _placed(transformers.AutoModelForCausalLM.from_config(config)), _ids()
        options = {"max_new_tokens": 6, "min_new_tokens": 6, "pad_token_id": 0, **generation}
        return lambda: model.generate(ids, attention_mask=torch.ones_like(ids), **options)

    return make


def _of_text(config: Any, **inputs: Callable[[], Tensor]) -> Callable[[], Step]:
    def make() -> Step:
        model = _placed(transformers.AutoModel.from_config(config))
        given = {name: value() for name, value in inputs.items()}
        return lambda: model(**given)

    return make


def _of_pictures(config: Any) -> Callable[[], Step]:
    shape = (2, 3, 224, 224)
    return _of_text(config, pixel_values=lambda: torch.zeros(shape, dtype=torch.float16, device="cuda"))


def models() -> dict[str, Callable[[], Step]]:
    """Models by name."""
    llama = transformers.LlamaConfig(**_SIZES)
    gpt2 = transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=256, n_layer=3, n_head=4)
    return {
        "llama": _answering(llama),
        "llama, sampled": _answering(llama, **_SAMPLED),
        "llama, penalties": _answering(llama, repetition_penalty=1.2, no_repeat_ngram_size=2),
        "llama, static cache": _answering(llama, cache_implementation="static"),
        "llama, two answers": _answering(llama, do_sample=True, num_return_sequences=2),
        "llama, grouped heads": _answering(transformers.LlamaConfig(**_GROUPED)),
        "mistral, sliding window": _answering(transformers.MistralConfig(**_GROUPED, sliding_window=32)),
        "qwen2": _answering(transformers.Qwen2Config(**_GROUPED)),
        "gemma": _answering(transformers.GemmaConfig(**_SIZES, num_key_value_heads=1, head_dim=256)),
        "gemma2": _answering(transformers.Gemma2Config(**_GROUPED, head_dim=64, sliding_window=32)),
        "gpt2": _answering(gpt2),
        "gpt2, sampled": _answering(gpt2, **_SAMPLED),
        "neox": _answering(transformers.GPTNeoXConfig(**_SIZES)),
        "phi": _answering(transformers.PhiConfig(**_SIZES)),
        "bloom": _answering(transformers.BloomConfig(vocab_size=VOCABULARY, hidden_size=256, n_layer=3, n_head=4)),
        "falcon": _answering(transformers.FalconConfig(**{**_SIZES, "intermediate_size": None})),
        "mixtral": _answering(transformers.MixtralConfig(**_GROUPED, num_local_experts=4)),
        "mamba": _answering(transformers.MambaConfig(vocab_size=VOCABULARY, hidden_size=128, num_hidden_layers=2)),
        "bert": _of_text(transformers.BertConfig(**_SIZES), input_ids=_ids, attention_mask=lambda: _ids().clamp(0, 1)),
        "deberta": _of_text(
            transformers.DebertaV2Config(**_SIZES, relative_attention=True, pos_att_type=["p2c", "c2p"]), input_ids=_ids
        ),
        "t5": _of_text(
            transformers.T5Config(vocab_size=VOCABULARY, d_model=256, d_kv=64, d_ff=512, num_layers=3, num_heads=4),
            input_ids=_ids,
            decoder_input_ids=_ids,
        ),
        "whisper": _of_text(
            transformers.WhisperConfig(**_WHISPER),
            input_features=lambda: torch.zeros(1, 80, 3000, dtype=torch.float16, device="cuda"),
            decoder_input_ids=lambda: _ids(1),
        ),
        "vit": _of_pictures(transformers.ViTConfig(**_VISION)),
        "clip": _of_pictures(transformers.CLIPVisionConfig(**_VISION)),
        "resnet": _of_pictures(transformers.ResNetConfig()),
        "convnext": _of_pictures(transformers.ConvNextConfig(hidden_sizes=[32, 64, 128, 256])),
        "swin": _of_pictures(transformers.SwinConfig(embed_dim=48)),
    }


def measured(make: Callable[[], Step]) -> Figures:
    """Requested bytes: the peak of a second step, and those of its result."""
    with torch.inference_mode():
        step = make()
        step()
        gc.collect()
        torch.cuda.reset_peak_memory_stats()
        before_bytes = torch.cuda.memory_stats()["requested_bytes.all.current"]
        result = step()
        stats = torch.cuda.memory_stats()
        del result
    peak, kept = (stats[f"requested_bytes.all.{which}"] - before_bytes for which in ("peak", "current"))
    return [peak, kept]
