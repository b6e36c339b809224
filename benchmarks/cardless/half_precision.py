"""Small models of transformers in half precision, answering and in training, on both sides:

python -m benchmarks.cardless --card H100 -- -m benchmarks.cardless.half_precision [--output-folder F] [MODEL ...]
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor

from benchmarks.cardless import evidence
from benchmarks.cardless.training import begin, now
from benchmarks.cardless.values import Values
from vram.cards import Card
from vram.simulated.context import SimulatedCuda

Rows = dict[str, list[list[int]]]  # bytes above what was there before: allocated, requested, reserved
_SPECIAL: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SIZES: dict[str, Any] = _SPECIAL | {
    "vocab_size": 1000, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
}  # fmt: skip
_GROUPED = _SIZES | {"num_key_value_heads": 2}
_VISION = {
    "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256, "image_size": 64,
    "patch_size": 16,
}  # fmt: skip
_WHISPER = _SPECIAL | {
    "vocab_size": 1000, "num_mel_bins": 20, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128,
    "max_source_positions": 50, "max_target_positions": 60, "decoder_start_token_id": 3, "suppress_tokens": None,
    "begin_suppress_tokens": None,
}  # fmt: skip


class _Model(NamedTuple):
    """How a model is made, inputs of a training step and of an answer, and whether it generates that."""

    make: Callable[[], Any]
    training: Callable[[torch.dtype], dict[str, Any]]
    answer: Callable[[torch.dtype], dict[str, Any]]
    generates: bool = False


def _ids(tokens: int = 21) -> Tensor:
    return torch.arange(3, 3 + 2 * tokens).view(2, tokens).to("cuda")


def _of_text(kind: Any, config: Any) -> _Model:
    return _Model(lambda: kind(config), lambda _: {"input_ids": _ids(), "labels": _ids()}, _words, generates=True)


def _classes() -> Tensor:
    return torch.zeros(2, dtype=torch.long, device="cuda")


def _pictures(dtype: torch.dtype) -> dict[str, Any]:
    return {"pixel_values": torch.zeros(2, 3, 64, 64, device="cuda", dtype=dtype)}


def _sounds(dtype: torch.dtype) -> dict[str, Any]:
    return {"input_features": torch.zeros(2, 20, 100, device="cuda", dtype=dtype)}


def _words(_: torch.dtype) -> dict[str, Any]:
    return {"input_ids": _ids(), "attention_mask": torch.ones_like(_ids())}


def models() -> dict[str, _Model]:
    """Models by name."""
    t, windowed = transformers, {"sliding_window": 8}
    moe = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    gpt2 = {"vocab_size": 1000, "n_embd": 256, "n_layer": 2, "n_head": 4}
    t5 = {"vocab_size": 1000, "d_model": 256, "d_kv": 64, "d_ff": 512, "num_layers": 2, "num_heads": 4}
    mamba = {"vocab_size": 1000, "hidden_size": 128, "num_hidden_layers": 2, "state_size": 16}
    clip = t.CLIPConfig(text_config=_SIZES | {"max_position_embeddings": 40}, vision_config=_VISION, projection_dim=64)
    return {
        "llama": _of_text(t.LlamaForCausalLM, t.LlamaConfig(**_GROUPED)),
        "qwen2": _of_text(t.Qwen2ForCausalLM, t.Qwen2Config(**_GROUPED)),
        "qwen2 moe": _of_text(
            t.Qwen2MoeForCausalLM, t.Qwen2MoeConfig(**_GROUPED, **moe, shared_expert_intermediate_size=64)
        ),
        "gemma": _of_text(t.GemmaForCausalLM, t.GemmaConfig(**_GROUPED, head_dim=64)),
        "gemma 2": _of_text(t.Gemma2ForCausalLM, t.Gemma2Config(**_GROUPED, **windowed, head_dim=64)),
        "mistral": _of_text(t.MistralForCausalLM, t.MistralConfig(**_GROUPED, **windowed)),
        "mixtral": _of_text(
            t.MixtralForCausalLM, t.MixtralConfig(**_GROUPED, num_local_experts=4, sliding_window=None)
        ),
        "phi": _of_text(t.PhiForCausalLM, t.PhiConfig(**_SIZES)),
        "gpt2": _of_text(t.GPT2LMHeadModel, t.GPT2Config(**gpt2, **_SPECIAL)),
        "t5": _of_text(t.T5ForConditionalGeneration, t.T5Config(**t5, decoder_start_token_id=0)),
        "mamba": _of_text(t.MambaForCausalLM, t.MambaConfig(**mamba, **_SPECIAL)),
        "bert": _Model(
            lambda: t.BertForSequenceClassification(t.BertConfig(**_SIZES)),
            lambda dtype: _words(dtype) | {"labels": _classes()},
            _words,
        ),
        "vit": _Model(
            lambda: t.ViTForImageClassification(t.ViTConfig(**_VISION, num_labels=10)),
            lambda dtype: _pictures(dtype) | {"labels": _classes()},
            _pictures,
        ),
        "clip": _Model(
            lambda: t.CLIPModel(clip),
            lambda dtype: _words(dtype) | _pictures(dtype) | {"return_loss": True},
            lambda dtype: _words(dtype) | _pictures(dtype),
        ),
        "whisper": _Model(
            lambda: t.WhisperForConditionalGeneration(t.WhisperConfig(**_WHISPER)),
            lambda dtype: _sounds(dtype) | {"labels": _ids(7)},
            _sounds,
            generates=True,
        ),
    }


def measured(model: _Model, dtype: torch.dtype) -> Rows:
    """Weights; peak and what stays of two answers; of two steps by AdamW, peaks and levels of each part."""
    _begin_anew()
    before = now("current")
    module = model.make().to("cuda", dtype).eval()

    def above(*figures: list[int]) -> list[list[int]]:
        return [[after - then for after, then in zip(each, before, strict=True)] for each in figures]

    rows = {"weights": above(now("current"))}
    for turn in range(2):
        _begin_anew()
        with torch.inference_mode():
            inputs = model.answer(dtype)
            answer = _generated(module, inputs) if model.generates else module(**inputs)
        rows[f"answer {turn}"] = above(now("peak"), now("current"))
        del answer, inputs
    optimizer = torch.optim.AdamW(module.train().parameters(), lr=1e-4)
    for turn in range(2):
        _begin_anew()
        loss = module(**model.training(dtype)).loss
        forward = above(now("peak"), now("current"))
        loss.backward()
        del loss
        backward = above(now("peak"), now("current"))
        optimizer.step()
        optimizer.zero_grad()
        rows[f"step {turn}"] = [*forward, *backward, *above(now("peak"), now("current"))]
    return rows


def _generated(module: Any, inputs: dict[str, Any]) -> Any:
    return module.generate(**inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False)


def _begin_anew() -> None:
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def all_measured(within: AbstractContextManager[object], names: Collection[str]) -> dict[str, Rows]:
    """The figures of models by name and dtype, one after the other on one card; of all where there are no names."""
    found = {}
    with within, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        begin()
        for name, model in models().items():
            for dtype in (torch.bfloat16, torch.float16) if not names or name in names else ():
                found[f"{name}, {str(dtype).removeprefix('torch.')}"] = measured(model, dtype)
    return found


def compare(card: Card, folder: Path, names: Collection[str]) -> None:
    """Run both sides, print where they differ, and write it down unless only some models were asked for."""
    transformers.logging.set_verbosity_error()
    theirs, ours = all_measured(Values(), names), all_measured(SimulatedCuda(card), names)
    unlike = [name for name in theirs if theirs[name] != ours[name]]
    for name in unlike:
        for part, figures in theirs[name].items():
            if figures != ours[name][part]:
                print(f"{name}, {part}: torch {figures}, simulated {ours[name][part]}")
    taken = sum(taken_alone(theirs[name]) == taken_alone(ours[name]) for name in theirs)
    print(f"allocated and requested bytes of {taken} of {len(theirs)} are equal, of {len(theirs) - len(unlike)} all")
    if not names:
        evidence.write_compared(folder, "half-precision", "models", card, theirs, ours)


def taken_alone(rows: Rows) -> Rows:
    """The figures without what is reserved."""
    return {part: [figures[:2] for figures in each] for part, each in rows.items()}


if __name__ == "__main__":
    its_card, options, _ = evidence.arguments("half_precision", "models")
    compare(its_card, options.output_folder, options.models)
