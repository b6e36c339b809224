"""Settings of PyTorch's allocator: those that change no figure pass, all others are refused by name.

They come from PYTORCH_ALLOC_CONF and PYTORCH_CUDA_ALLOC_CONF, and from calls, before a simulation or inside.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

# Variables of the environment: with settings, and one that turns caching off wherever it is set.
_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
_UNCACHED = "PYTORCH_NO_CUDA_MEMORY_CACHING"
_SETTING = re.compile(r"\s*(\w+)\s*:\s*(\[[^\]]*\]|[^,\[\]]+)\s*(?:,|$)\s*")
_HARMLESS = {  # what is so anyway
    "backend": ("native",),
    "expandable_segments": ("False",),
    "large_segment_size_mb": ("20",),
    "per_process_memory_fraction": ("1", "1.0"),
    "throw_on_cudamalloc_oom": ("False",),
}
_NO_FIGURE = {  # host memory, locks, CUDA graphs
    "pinned_use_background_threads",
    "pinned_use_cuda_host_register",
    "pinned_num_register_threads",
    "pinned_reserve_segment_size_mb",
    "pinned_max_round_threshold_mb",
    "pinned_max_cached_size_mb",
    "pinned_free_catch_all",
    "release_lock_on_cudamalloc",
    "graph_capture_record_stream_reuse",
}
_REASONS = {
    "expandable_segments": "segments that grow page by page are not modelled, and reserve other bytes",
    "backend": "only PyTorch's own allocator is modelled, not the driver's pool",
}


def refuse_environment(environment: Mapping[str, str]) -> None:
    """Raise ValueError, with its name, for a variable that could change a figure of the allocator."""
    if _UNCACHED in environment:
        raise ValueError(f"{_UNCACHED}: simulated CUDA models a caching allocator: take it out, or measure on a GPU")
    for name in _VARIABLES:
        try:
            refuse_settings(environment.get(name, ""))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None


def refuse_settings(text: str) -> None:
    """Raise ValueError for a setting of PYTORCH_ALLOC_CONF that could change a figure."""
    rest = text.strip()
    while rest:
        match = _SETTING.match(rest)
        if match is None:
            raise ValueError(f"an allocator setting must be written name:value, name:value, got {text!r}")
        name, value = match[1], match[2].strip()
        if value not in _HARMLESS.get(name, ()) and name not in _NO_FIGURE:
            why = _REASONS.get(name, "it is not modelled")
            raise ValueError(
                f"simulated CUDA must run with the allocator's default settings, got {name}:{value} ({why}): take it "
                "out of PYTORCH_ALLOC_CONF and PYTORCH_CUDA_ALLOC_CONF, and out of calls, or measure on a GPU"
            )
        rest = rest[match.end() :]
