"""Costs and savings of HiMAP and FastV, as ratios within one run: `python benchmarks/pruning.py`, for docs/himap.md.

Random weights; one prompt of 35 system tokens, 576 image tokens and text. Bytes are those of tensors (on a GPU: the
allocator's); times are medians of rounds in which the two sides take turns.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import vram
from himap import HimapLlamaForCausalLM
from himap.scoring import column_scores
from vram.units import format_bytes

SYS, IMG = 35, 576
PAPER = {"attn_txt_layer": 1, "attn_txt_rank": 288, "attn_img_layer": 2, "attn_img_rank": 72}  # proportions at 8 layers
Work = Callable[[], object]


def config(layers: int = 8, hidden: int = 512) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=1024,  # the head's share of the weights is LLaMA-7B's too: 2 %
        hidden_size=hidden,
        intermediate_size=hidden * 43 // 16,  # LLaMA-7B's proportion
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        max_position_embeddings=8192,
        eos_token_id=None,
        pad_token_id=0,
    )


def model_of(kind: type[Any], attention: str, device: str, hidden: int = 512) -> Any:
    torch.manual_seed(0)
    with torch.device(device):
        model = kind(config(hidden=hidden)).eval().requires_grad_(False)
    model.set_attn_implementation(attention)
    return model


MODES: dict[str, dict[str, Any]] = {
    "baseline": {},
    "HiMAP": PAPER,
    "HiMAP, nothing pruned": PAPER | {"attn_txt_rank": IMG, "attn_img_rank": IMG},
    "FastV": {"agg_layer": 1, "attention_rank": 288},
}


def switch(model: Any, mode: str) -> None:
    config = model.config
    config.use_hmap_v, config.use_fast_v = mode.startswith("HiMAP"), mode == "FastV"
    config.hmap_v_sys_length, config.hmap_v_img_length = SYS, IMG
    config.fast_v_sys_length, config.fast_v_image_token_length = SYS, IMG
    for name, value in MODES[mode].items():
        setattr(config, f"{'fast_v' if mode == 'FastV' else 'hmap_v'}_{name}", value)


def prompt(length: int, device: str) -> torch.Tensor:
    return torch.randint(3, 1000, (1, length), generator=torch.Generator().manual_seed(1)).to(device)


def cost(work: Work, device: str) -> tuple[int, int]:
    """Bytes that stay once `work` is done and its result dropped, and the peak, both above what was there before."""
    work()
    gc.collect()
    with vram.measure(device) as measured:
        work()
        gc.collect()
    return measured.live_bytes - measured.before_bytes, measured.peak_bytes - measured.before_bytes


def seconds(works: list[Work], device: str, rounds: int) -> list[float]:
    """Median seconds of each, taking turns."""
    times: list[list[float]] = [[] for _ in works]
    for turn in range(rounds + 1):
        for work, taken in zip(works, times, strict=True):
            started = time.perf_counter()
            work()
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            if turn:  # the first is warm-up
                taken.append(time.perf_counter() - started)
    return [statistics.median(taken) for taken in times]


def scoring(device: str) -> Iterator[list[str]]:
    """Extra bytes of scoring at 7B's 32 heads of 128, in tiles and at once."""
    yield ["tokens", "scored by", "in tiles", "at once"]
    for length in (627, 4096):
        query, key = (torch.randn(32, length, 128, device=device) for _ in range(2))
        image = range(SYS, SYS + IMG) if length < 1000 else range(SYS, length - 60)
        for name, rows in (("text", range(image.stop, length)), ("image", image)):
            part = query[:, rows.start : rows.stop]

            def work(
                tile_bytes: int, part: Any = part, key: Any = key, rows: range = rows, image: range = image
            ) -> Any:
                return column_scores(part, key, rows, image, 128**-0.5, tile_bytes)

            extra = [cost(lambda: work(tile_bytes), device)[1] for tile_bytes in (32 * 2**20, 2**60)]  # noqa: B023
            yield [str(length), name, *map(format_bytes, extra)]


def prefill_peaks(device: str) -> Iterator[list[str]]:
    yield ["tokens", "attention", "baseline", "HiMAP", "FastV", "HiMAP / baseline", "FastV / baseline"]
    for attention in ("sdpa", "eager"):
        model = model_of(HimapLlamaForCausalLM, attention, device)
        for length in (627, 671, 1024, 2048):
            ids, peaks = prompt(length, device), []
            for mode in ("baseline", "HiMAP", "FastV"):
                switch(model, mode)
                peaks.append(cost(lambda: model(ids, use_cache=True, logits_to_keep=1), device)[1])  # noqa: B023
            ratios = (f"{peak / peaks[0]:.2f}" for peak in peaks[1:])
            yield [str(length), attention, *map(format_bytes, peaks), *ratios]


def prefill_times(device: str, rounds: int) -> Iterator[list[str]]:
    """Milliseconds of reading a prompt of 671 tokens."""
    yield ["attention", *MODES, *(f"{mode} / baseline" for mode in MODES if mode != "baseline")]
    for attention in ("sdpa", "eager"):
        model, ids = model_of(HimapLlamaForCausalLM, attention, device), prompt(671, device)

        def run(mode: str, model: Any = model, ids: Any = ids) -> Any:
            switch(model, mode)
            return model(ids, use_cache=True, logits_to_keep=1)

        yield [attention, *compared([partial(run, mode) for mode in MODES], device, rounds)]


def decode_times(device: str, rounds: int) -> Iterator[list[str]]:
    """Milliseconds of 31 tokens after the first, each on the cache that its mode left of 671 tokens."""
    yield ["attention", *MODES, *(f"{mode} / baseline" for mode in MODES if mode != "baseline")]
    for attention in ("sdpa", "eager"):
        model, ids = model_of(HimapLlamaForCausalLM, attention, device), prompt(671, device)
        caches = {}
        for mode in MODES:
            switch(model, mode)
            caches[mode] = model(ids, use_cache=True, logits_to_keep=1).past_key_values

        def run(mode: str, model: Any = model, ids: Any = ids, caches: Any = caches) -> Any:
            switch(model, mode)
            for _ in range(31):
                model(ids[:, -1:], past_key_values=caches[mode])
            caches[mode].crop(-31)

        yield [attention, *compared([partial(run, mode) for mode in MODES], device, rounds)]


def compared(works: list[Work], device: str, rounds: int) -> list[str]:
    """Times of all, and the ratios of the later ones to the first."""
    first, *later = taken = seconds(works, device, rounds)
    return [*(f"{one * 1e3:.0f} ms" for one in taken), *(f"{one / first:.2f}" for one in later)]


def answers(device: str, rounds: int) -> Iterator[list[str]]:
    """Answers of 32 tokens: as the original generates them, and on a cache."""
    yield ["hidden", "no cache, attentions returned (the original)", "it retains", "KV cache", "it retains", "ratio"]
    for hidden in (512, 1024):
        yield answers_of(hidden, device, rounds)


def answers_of(hidden: int, device: str, rounds: int) -> list[str]:
    ids = prompt(671, device)
    exact: dict[str, Any] = {"min_new_tokens": 32, "max_new_tokens": 32, "do_sample": False}
    original = model_of(HimapLlamaForCausalLM, "eager", device, hidden)
    cached = model_of(HimapLlamaForCausalLM, "sdpa", device, hidden)
    for model in (original, cached):
        switch(model, "HiMAP")
    kept: list[Any] = []

    def as_the_original() -> None:
        kept[:] = []
        kept.append(
            original.generate(ids, **exact, use_cache=False, output_attentions=True, return_dict_in_generate=True)
        )

    def on_a_cache() -> None:
        cached.generate(ids, **exact)

    slow, fast = seconds([as_the_original, on_a_cache], device, rounds)
    retained = []
    for work in (as_the_original, on_a_cache):
        kept.clear()
        gc.collect()
        with vram.measure(device) as measured:
            work()
            gc.collect()
        retained.append(measured.live_bytes - measured.before_bytes)
    kept_slow, kept_fast = map(format_bytes, retained)
    return [str(hidden), f"{slow:.2f} s", kept_slow, f"{fast:.2f} s", kept_fast, f"{slow / fast:.1f}"]


def baseline(device: str, rounds: int) -> Iterator[list[str]]:
    """Baseline mode beside plain transformers: an answer of 8 tokens."""
    yield ["attention", "plain", "baseline", "time ratio", "peak, plain", "peak, baseline"]
    ids = prompt(671, device)
    for attention in ("sdpa", "eager"):
        models = [model_of(kind, attention, device) for kind in (LlamaForCausalLM, HimapLlamaForCausalLM)]
        works = [
            lambda model=model: model.generate(ids, min_new_tokens=8, max_new_tokens=8, do_sample=False)
            for model in models
        ]
        times, peaks = seconds(works, device, rounds), [cost(work, device)[1] for work in works]
        ratio = f"{times[1] / times[0]:.2f}"
        yield [attention, *(f"{one * 1e3:.0f} ms" for one in times), ratio, *(f"{one:,} B" for one in peaks)]


def show(title: str, rows: Iterator[list[str]]) -> None:
    print(f"\n{title}\n")
    for index, row in enumerate(rows):
        print("| " + " | ".join(row) + " |", flush=True)
        if not index:
            print("|" + "---|" * len(row))


def main() -> None:
    """Print every table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    device, rounds = options.device, options.rounds
    name = (
        torch.cuda.get_device_name(device) if device.startswith("cuda") else f"CPU, {torch.get_num_threads()} threads"
    )
    print(f"{name}, torch {torch.__version__}, float32, {config().num_hidden_layers} layers of {config().hidden_size}")
    with torch.inference_mode():
        show("Scoring, extra memory (32 heads of 128)", scoring(device))
        show("Prefill, peak memory above the weights", prefill_peaks(device))
        show("Prefill of 671 tokens, time", prefill_times(device, rounds))
        show("31 further tokens, time", decode_times(device, rounds))
        show("Answers of 32 tokens, 671 prompt tokens", answers(device, max(1, rounds // 2)))
        show("Baseline beside plain transformers, 8 tokens", baseline(device, rounds))


if __name__ == "__main__":
    main()
