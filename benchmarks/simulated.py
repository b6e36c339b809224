"""Time that simulated CUDA takes: `python benchmarks/simulated.py [ROUNDS]`. The tables are docs/overhead.md's.

Operations: a LLaMA of 8 layers, on the simulated card and on plain `FakeTensorMode`, which simulated CUDA is built on.
Allocations: the recorded requests of the same prompt, and those of answers of a LLaVA of 7 billion weights, which grow
from token to token, played on the allocator alone, one by one and as forecasts do. CPU time of this process; each round
builds both sides anew and takes the least of 5 prompts, and the medians of the rounds are printed.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from statistics import median
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import LlamaConfig, LlamaForCausalLM

from llava.answer_traces import AnswerTraces, Prompt, Workload
from llava.forecast_config import config_of
from vram.cards import find_card
from vram.simulated.allocator import CachingAllocator
from vram.simulated.context import SimulatedCuda
from vram.simulated.quick_replay import QuickReplay
from vram.simulated.torch_build import fill_cuda_guard
from vram.simulated.trace import Recorder, Replay

CARD = find_card("A10")
LARGE_CARD = find_card("A100 80GB")
CONFIG = LlamaConfig(
    vocab_size=320,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=8,
    attn_implementation="sdpa",
)


def least(work: Callable[[], object], times: int = 5) -> float:
    """Seconds of CPU time."""
    seconds = []
    for _ in range(times):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return min(seconds)


def prompt() -> Callable[[], object]:
    """A model on the device `cuda`, and a prompt for it that was answered once."""
    with torch.device("cuda"):  # plain fake tensors can't be moved
        model = LlamaForCausalLM(CONFIG).eval()
    ids = torch.ones(1, 64, dtype=torch.long, device="cuda")

    def work() -> None:
        with torch.inference_mode():
            model(ids, use_cache=False)

    work()
    return work


def of_operations(mode: AbstractContextManager[Any]) -> float:
    with mode:
        return least(prompt())


def of_allocations() -> tuple[list[float], int]:
    """Seconds to play the requests of 100 prompts, one by one and quickly, and how many requests."""
    cuda = SimulatedCuda(CARD)
    recorder = Recorder(cuda.allocator)
    with cuda:
        work = prompt()
        setup = recorder.cut("setup")
        work()
        trace = recorder.cut()
    seconds = []
    for kind in (Replay, QuickReplay):
        replay = kind(CachingAllocator(CARD.total_bytes, CARD.context_bytes))
        replay.play(setup)

        def play(replay: Replay = replay) -> None:
            for _ in range(100):
                replay.play(trace)

        seconds.append(least(play))
    return seconds, 100 * len(trace)


def of_answers(batch: int) -> tuple[list[float], int]:
    """Seconds to play the requests of answers of 1,000 tokens: one by one, for figures, and for holders of the peak
    too; and how many requests. All have the same figures."""
    answers = AnswerTraces(Workload("7b", "baseline", LARGE_CARD, batch=batch), config_of("7b"))
    prompt = Prompt(627)
    traces = list(answers.interpolated(prompt, answers.room(prompt)).traces(1000))
    seconds, figures = [], []
    for kind in (Replay, QuickReplay, partial(QuickReplay, named=True)):
        replay = kind(CachingAllocator(LARGE_CARD.total_bytes, LARGE_CARD.context_bytes))
        replay.play(answers.setup)
        started = time.process_time()
        for trace in traces:
            played = replay.play(trace)
            if kind not in (Replay, QuickReplay):
                replay.at_peak()
        seconds.append(time.process_time() - started)
        figures.append((played.allocated_bytes, played.reserved_peak_bytes, played.allocated_peak_bytes))
    if len(set(figures)) > 1:
        raise SystemExit(f"plays must have the same figures, got {figures}")
    return seconds, sum(map(len, traces))


def main() -> None:
    """Print the tables as Markdown."""
    warnings.filterwarnings("ignore", message="simulated CUDA is tested")
    fill_cuda_guard()
    rounds = int(sys.argv[1]) if sys.argv[1:] else 5
    fake, simulated, plays = [], [], []
    for _ in range(rounds):
        fake.append(of_operations(FakeTensorMode(allow_non_fake_inputs=True)))
        simulated.append(of_operations(SimulatedCuda(CARD)))
        plays.append(of_allocations())
    print("| a prompt, under | time | ratio |\n|---|---|---|")
    print(f"| FakeTensorMode | {1e3 * median(fake):.1f} ms | 1.00 |")
    ratio = median(ours / theirs for ours, theirs in zip(simulated, fake, strict=True))
    print(f"| SimulatedCuda | {1e3 * median(simulated):.1f} ms | {ratio:.2f} |")
    print("\n| requests | one by one | for figures alone | with holders |\n|---|---|---|---|")
    requests = plays[0][1]
    print_plays(f"{requests // 100} of a prompt, played 100 times", [seconds for seconds, _ in plays], requests)
    for batch in (1, 8):
        answers = [of_answers(batch) for _ in range(rounds)]
        requests = answers[0][1]
        print_plays(
            f"{requests:,} of an answer of 1,000 tokens, batch {batch}", [each for each, _ in answers], requests
        )


def print_plays(name: str, rounds: list[list[float]], requests: int) -> None:
    """Print a row: time of a request one by one, and of the other ways with their ratios."""
    first, *others = ([each[way] for each in rounds] for way in range(len(rounds[0])))
    cells = [f"{1e6 * median(first) / requests:.2f} us"]
    for way in others:
        ratio = median(one / other for one, other in zip(first, way, strict=True))
        cells.append(f"{1e6 * median(way) / requests:.2f} us, {ratio:.1f} x as fast")
    print(f"| {name} | {' | '.join(cells)} |{'' if cells[2:] else ' |'}")


if __name__ == "__main__":
    main()
