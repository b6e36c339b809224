"""Settings of PyTorch's allocator: those that are modelled, those without a figure, and others, refused by name.

They come from PYTORCH_ALLOC_CONF and PYTORCH_CUDA_ALLOC_CONF, and from calls, before a simulation or inside. The rules
are those of c10/core/AllocatorConfig.cpp, torch 2.13.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

_MIB = 2**20
# Variables of the environment: with settings, and one that turns caching off wherever it is set.
_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
_UNCACHED = "PYTORCH_NO_CUDA_MEMORY_CACHING"
_SETTING = re.compile(r"\s*(\w+)\s*:\s*(\[[^\]]*\]|[^,\[\]]+)\s*(?:,|$)\s*")
_HARMLESS = {  # what is so anyway
    "backend": ("native",),
    "expandable_segments": ("False",),
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
_INTERVALS = 16  # of sizes, each twice the one before: up to 2 MiB, ..., from 32 GiB on
_FIRST_INTERVAL = 20  # 2^20 bytes
UNLIMITED_BYTES = 2**62


@dataclass(frozen=True)
class Settings:
    """Settings that the allocator's rules depend on; the defaults are PyTorch's.

    `rounding_bytes`: by how much an unsplit cached block may be larger than a request from `max_split_bytes` on.
    `divisions`: how many steps from one power of two to the next, by interval of sizes. `collect_from`: the share of
    what is allowed from which unused segments are given back. `fraction`: the share of the card that may be used.
    """

    max_split_bytes: int = UNLIMITED_BYTES
    rounding_bytes: int = 20 * _MIB
    large_segment_bytes: int = 20 * _MIB
    divisions: tuple[int, ...] = (0,) * _INTERVALS
    collect_from: float = 0.0
    fraction: float = 1.0

    def __str__(self) -> str:
        """The settings that are not the default ones, by our names; "default" without any."""
        default = Settings()
        own = {name: value for name, value in vars(self).items() if value != getattr(default, name)}
        return ", ".join(f"{name}={value}" for name, value in own.items()) or "default"

    def set_to(self, text: str, *, by_call: bool = False) -> Settings:
        """These settings after `text`, as "max_split_size_mb:128, backend:native".

        Splitting, rounding and collecting are the default ones where it does not name them. Raises ValueError, with the
        name, for one that is not modelled, or has a value that PyTorch does not take.
        """
        settings = Settings(rounding_bytes=0, large_segment_bytes=self.large_segment_bytes, fraction=self.fraction)
        for name, value in _pairs(text):
            if name == "per_process_memory_fraction" and (not by_call or value in ("1", "1.0")):
                settings = replace(settings, fraction=_share(name, value, including=True) if not by_call else 1.0)
            elif name in _MODELLED:
                settings = _MODELLED[name](settings, name, value)
            elif value not in _HARMLESS.get(name, ()) and name not in _NO_FIGURE:
                raise ValueError(
                    f"simulated CUDA must run with settings of the allocator that it models, got {name}:{value} "
                    f"({_REASONS.get(name, 'it is not modelled')}): take it out of PYTORCH_ALLOC_CONF and "
                    "PYTORCH_CUDA_ALLOC_CONF, and out of calls, or measure on a GPU"
                )
        return replace(settings, rounding_bytes=settings.rounding_bytes or settings.large_segment_bytes)

    def rounded(self, n_bytes: int) -> int:
        """The size of a request of so many bytes by `divisions`; by steps of 512 B where these do not apply."""
        interval = min(max(n_bytes.bit_length() - 1 - _FIRST_INTERVAL, 0), _INTERVALS - 1)
        divisions = self.divisions[interval]
        if divisions < 2 or n_bytes <= 512 * divisions:
            return -(-n_bytes // 512) * 512
        step = max(1 << (n_bytes.bit_length() - 1), 1) // divisions
        return -(-n_bytes // step) * step


def environment_settings(environment: Mapping[str, str]) -> Settings:
    """The settings of the environment. Raises ValueError, with the variable's name, where they are not modelled."""
    if _UNCACHED in environment:
        raise ValueError(f"{_UNCACHED}: simulated CUDA models a caching allocator: take it out, or measure on a GPU")
    found = {}
    for name in _VARIABLES:
        if environment.get(name, "").strip():
            try:
                found[name] = Settings().set_to(environment[name])
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
    if len(set(found.values())) > 1:  # parts of PyTorch prefer one, parts the other
        raise ValueError(f"{' and '.join(_VARIABLES)} must not differ: set one of them")
    return next(iter(found.values()), Settings())


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    rest = text.strip()
    while rest:
        match = _SETTING.match(rest)
        if match is None:
            raise ValueError(f"an allocator setting must be written name:value, name:value, got {text!r}")
        yield match[1], match[2].strip()
        rest = rest[match.end() :]


def _mebibytes(name: str, value: str, least: int) -> int:
    if not re.fullmatch("[0-9]{1,12}", value) or int(value) < least:
        raise ValueError(f"{name} must be a number of MiB, at least {least}, got {value}")
    return int(value) * _MIB


def _share(name: str, value: str, *, including: bool) -> float:
    share = float(value) if re.fullmatch(r"[0-9]*\.?[0-9]+", value) else -1.0
    if not 0 <= share <= 1 or (not including and share in (0, 1)):
        raise ValueError(f"{name} must be between 0 and 1, got {value}")
    return share


def _large_segment(settings: Settings, name: str, value: str) -> Settings:
    n_bytes = _mebibytes(name, value, 11)
    if n_bytes % (2 * _MIB):
        raise ValueError(f"{name} must be even, as simulated CUDA models whole pages of 2 MiB, got {value}")
    return replace(settings, large_segment_bytes=n_bytes)


def _max_split(settings: Settings, name: str, value: str) -> Settings:
    n_bytes = _mebibytes(name, value, settings.large_segment_bytes // _MIB)
    return replace(settings, max_split_bytes=min(n_bytes, UNLIMITED_BYTES))


def _rounding(settings: Settings, name: str, value: str) -> Settings:
    return replace(settings, rounding_bytes=_mebibytes(name, value, settings.large_segment_bytes // _MIB))


def _collecting(settings: Settings, name: str, value: str) -> Settings:
    return replace(settings, collect_from=_share(name, value, including=False))


def _divisions(settings: Settings, name: str, value: str) -> Settings:
    """One number for all sizes, or [MiB:number, ..., >:number]."""
    if not value.startswith("["):
        return replace(settings, divisions=(_power_of_two(name, value),) * _INTERVALS)
    divisions, last = list(settings.divisions), None
    for entry in value.strip("[] ").split(","):
        size, _, number_text = (part.strip() for part in entry.partition(":"))
        number = 0 if number_text == "0" else _power_of_two(name, number_text)
        if size == ">":
            first = 0 if last is None else last
            divisions[first + 1 :] = [number] * (_INTERVALS - first - 1)
            continue
        index = min(_power_of_two(name, size).bit_length() - 1, _INTERVALS - 1)
        if last is None:
            divisions[:index] = [number] * index
        divisions[index], last = number, index
    return replace(settings, divisions=tuple(divisions))


def _power_of_two(name: str, text: str) -> int:
    number = int(text) if re.fullmatch("[0-9]{1,9}", text) else 0
    if number < 1 or number & (number - 1):
        raise ValueError(f"{name} must be made of powers of two, got {text}")
    return number


_MODELLED = {
    "large_segment_size_mb": _large_segment,
    "max_split_size_mb": _max_split,
    "max_non_split_rounding_mb": _rounding,
    "garbage_collection_threshold": _collecting,
    "roundup_power2_divisions": _divisions,
}
