"""Other tools' figures for a prompt of LLaVA-1.5-7B: `python benchmarks/estimates.py`. See docs/simulated.md.

float16, 627 tokens, SDPA. accelerate's figure is what `accelerate estimate-memory` prints, from the same function;
torch's MemTracker follows the same prompt on the same fake tensors.
"""

from __future__ import annotations

import time
import warnings
from typing import Any

import torch
from accelerate.utils import calculate_maximum_sizes
from torch.distributed._tools.mem_tracker import MemTracker

from llava.checkpoint import empty_model
from llava.forecast_config import config_of
from vram.simulated.context import DEVICE, SimulatedCuda

MIB = 2**20
PROMPT = 627


def prompt(model: Any) -> dict[str, Any]:
    ids = torch.full((1, PROMPT), 1)
    ids[:, 35 : 35 + 576] = model.config.image_token_id
    pixels = torch.zeros(1, 3, 336, 336).half()
    return {"input_ids": ids.to(DEVICE), "pixel_values": pixels.to(DEVICE), "logits_to_keep": 1}


def accelerate_says() -> float:
    with torch.device("meta"):
        model = empty_model(config_of("7b"), torch.device("meta"), dtype=torch.float16)
    total_bytes, _ = calculate_maximum_sizes(model)
    return total_bytes / MIB


def simulated(tracker: Any = None) -> tuple[float, float, float]:
    """Peaks of allocated and reserved, and of the tracker, MiB."""
    cuda = SimulatedCuda("80GiB")
    with cuda, torch.inference_mode():
        model = empty_model(config_of("7b"), DEVICE, dtype=torch.float16).eval()
        inputs = prompt(model)
        if tracker is None:
            model(**inputs)
        else:
            tracker.track_external(model, inputs["input_ids"], inputs["pixel_values"])
            with tracker:
                model(**inputs)
        stats = cuda.allocator.stats
        tracked = 0 if tracker is None else tracker.get_tracker_snapshot("peak")[DEVICE]["Total"]
    return stats.allocated_bytes.peak / MIB, stats.reserved_bytes.peak / MIB, tracked / MIB


def main() -> None:
    """Print the table as Markdown."""
    warnings.filterwarnings("ignore", message="simulated CUDA is tested")
    print(f"torch {torch.__version__}\n\n| tool | MiB | seconds |\n|---|---|---|")
    started = time.perf_counter()
    print(f"| accelerate estimate-memory | {accelerate_says():.2f} | {time.perf_counter() - started:.1f} |")
    started = time.perf_counter()
    try:
        _, _, tracked = simulated(MemTracker())
        print(f"| MemTracker, within the simulation | {tracked:.2f} | {time.perf_counter() - started:.1f} |")
    except Exception as error:  # it is no public API
        print(f"| MemTracker, within the simulation | {type(error).__name__}: {error} | - |")
    started = time.perf_counter()
    allocated, reserved, _ = simulated()
    print(f"| vram.simulated, allocated | {allocated:.2f} | {time.perf_counter() - started:.1f} |")
    print(f"| vram.simulated, reserved | {reserved:.2f} | |")


if __name__ == "__main__":
    main()
