"""The flags of HiMAP, FastV and custom selection, read from a config at the moment they are needed.

The original copies the flags into the model when it is built, so that setting the config alone does nothing, in both
directions. Here the config is the only place they live.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal

HIMAP_FLAGS = (
    "use_hmap_v",
    "hmap_v_sys_length",
    "hmap_v_img_length",
    "hmap_v_attn_txt_layer",
    "hmap_v_attn_txt_rank",
    "hmap_v_attn_img_layer",
    "hmap_v_attn_img_rank",
)
FASTV_FLAGS = (
    "use_fast_v",
    "fast_v_sys_length",
    "fast_v_image_token_length",
    "fast_v_agg_layer",
    "fast_v_attention_rank",
)
CUSTOM_FLAGS = (
    "use_custom_selection",
    "custom_sys_length",
    "custom_image_token_length",
    "custom_kept_tokens",
    "custom_agg_layer",
    "custom_selection_method",
    "custom_temperature",
    "custom_first_index",
    "custom_drop",
)
FLAGS = HIMAP_FLAGS + FASTV_FLAGS + CUSTOM_FLAGS
SWITCHES = ("use_hmap_v", "use_fast_v", "use_custom_selection")
SELECTION_METHODS = ("fps", "tome")


@dataclass(frozen=True)
class Lengths:
    """Configured lengths, in tokens: `sys` before the image, `img` of the image. None: ask the image mask."""

    sys: int | None
    img: int | None


@dataclass(frozen=True)
class Stage:
    """Before `layer` (0-based) keep the `rank` image tokens to which attention of the layer before was highest.

    Attention counts from the text after the image ("txt"), from the image itself ("img") or from the last token
    ("last"); `himap.Kept` has the result under the same name.
    """

    layer: int
    rank: int
    attention_from: Literal["txt", "img", "last"]


@dataclass(frozen=True)
class HimapSettings:
    """Before `txt_layer` keep `txt_rank` image tokens, before `img_layer` keep `img_rank` of those (layers 0-based)."""

    lengths: Lengths
    txt_layer: int
    txt_rank: int
    img_layer: int | None
    img_rank: int | None

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages in the order in which they happen."""
        first = Stage(self.txt_layer, self.txt_rank, "txt")
        if self.img_layer is None or self.img_rank is None:
            return (first,)
        return first, Stage(self.img_layer, self.img_rank, "img")

    def check_image(self, image_tokens: int) -> None:
        """Raise ValueError unless the ranks fit an image of `image_tokens` tokens."""
        if self.txt_rank > image_tokens:
            raise ValueError(
                f"hmap_v_attn_txt_rank must be at most the {image_tokens} image tokens, got {self.txt_rank}"
            )

    def without_effect(self, layers: int, image_tokens: int) -> str:
        """Predicate for a stage that comes after the last of `layers`: "removes nothing: ..."; "" where none does."""
        if self.txt_layer >= layers:
            return f"removes nothing: {_beyond('hmap_v_attn_txt_layer', self.txt_layer, layers)}"
        if self.img_layer is not None and self.img_layer >= layers:
            return f"removes nothing at its second stage: {_beyond('hmap_v_attn_img_layer', self.img_layer, layers)}"
        return ""


@dataclass(frozen=True)
class FastvSettings:
    """Before `agg_layer` (0-based) keep the `rank` image tokens that the last token attends to most.

    Source: FastV (arXiv 2403.06764), whose K is `agg_layer`; of its R the share (1 - R) is kept.
    """

    lengths: Lengths
    agg_layer: int
    rank: int

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The one stage there is."""
        return (Stage(self.agg_layer, self.rank, "last"),)

    def check_image(self, image_tokens: int) -> None:
        """Raise ValueError unless the rank fits an image of `image_tokens` tokens."""
        if self.rank > image_tokens:
            raise ValueError(f"fast_v_attention_rank must be at most the {image_tokens} image tokens, got {self.rank}")

    def without_effect(self, layers: int, image_tokens: int) -> str:
        """Predicate where the layer comes after the last of `layers`: "removes nothing: ..."; "" elsewhere."""
        beyond = self.agg_layer >= layers
        return f"removes nothing: {_beyond('fast_v_agg_layer', self.agg_layer, layers)}" if beyond else ""


@dataclass(frozen=True)
class CustomSettings:
    """At the input of `agg_layer` replace the image tokens by `kept` aggregates of them."""

    lengths: Lengths
    kept: int
    agg_layer: int
    method: str
    temperature: float
    first_index: int | None
    drop: bool

    def check_image(self, image_tokens: int) -> None:
        """Raise ValueError unless `first_index` names one of `image_tokens` tokens."""
        if self.first_index is not None and self.first_index >= image_tokens:
            raise ValueError(
                f"custom_first_index must be below the {image_tokens} image tokens, got {self.first_index}"
            )

    def without_effect(self, layers: int, image_tokens: int) -> str:
        """Predicate where all image tokens are kept, or the layer comes after the last of `layers`: "selects nothing:
        ..."; "" elsewhere."""
        if self.kept >= image_tokens:
            return f"selects nothing: custom_kept_tokens is {self.kept}, and an image has {image_tokens} tokens"
        beyond = self.agg_layer >= layers
        return f"selects nothing: {_beyond('custom_agg_layer', self.agg_layer, layers)}" if beyond else ""


def _beyond(flag: str, layer: int, layers: int) -> str:
    return f"{flag} is {layer}, and the decoder's last layer is {layers - 1}"


PruningSettings = HimapSettings | FastvSettings
Settings = PruningSettings | CustomSettings


def any_mode_on(config: Any) -> bool:
    """Whether a switch of a mode is on, or holds something that is neither on nor off. Nothing is checked."""
    for name in SWITCHES:  # noqa: SIM110  # a generator would run in every forward of baseline
        if getattr(config, name, False):
            return True
    return False


def removes_tokens(settings: Settings) -> bool:
    """Whether a prompt leaves the decoder shorter than it came; custom selection may keep its length."""
    return not isinstance(settings, CustomSettings) or settings.drop


def active_settings(config: Any) -> Settings | None:
    """The settings of the mode that is on, checked; None when every mode is off.

    Nothing is checked while a mode is off. Raises ValueError for two modes at once and for flags that break a rule.
    """
    if not any_mode_on(config):
        return None
    on = [name for name in SWITCHES if _switch(config, name)]
    if len(on) > 1:
        raise ValueError(f"{' and '.join(on)} must not both be on")
    return _READERS[on[0]](config)


def _himap_settings(config: Any) -> HimapSettings:
    settings = HimapSettings(
        lengths=Lengths(
            sys=_whole_or_none(config, "hmap_v_sys_length"), img=_whole_or_none(config, "hmap_v_img_length", lowest=1)
        ),
        txt_layer=_whole(config, "hmap_v_attn_txt_layer", lowest=1),
        txt_rank=_whole(config, "hmap_v_attn_txt_rank"),
        img_layer=_whole_or_none(config, "hmap_v_attn_img_layer"),
        img_rank=_whole_or_none(config, "hmap_v_attn_img_rank"),
    )
    if (settings.img_layer is None) != (settings.img_rank is None):
        raise ValueError(
            "hmap_v_attn_img_layer and hmap_v_attn_img_rank go together, "
            f"got {settings.img_layer} and {settings.img_rank}"
        )
    if settings.img_layer is not None and settings.img_layer <= settings.txt_layer:
        raise ValueError(
            "hmap_v_attn_img_layer must be greater than hmap_v_attn_txt_layer, "
            f"got {settings.img_layer} and {settings.txt_layer}"
        )
    if settings.img_rank is not None and settings.img_rank > settings.txt_rank:
        raise ValueError(
            "hmap_v_attn_img_rank must be at most hmap_v_attn_txt_rank, "
            f"got {settings.img_rank} and {settings.txt_rank}"
        )
    return settings


def _fastv_settings(config: Any) -> FastvSettings:
    return FastvSettings(
        lengths=Lengths(
            sys=_whole_or_none(config, "fast_v_sys_length"),
            img=_whole_or_none(config, "fast_v_image_token_length", lowest=1),
        ),
        agg_layer=_whole(config, "fast_v_agg_layer", lowest=1),
        rank=_whole(config, "fast_v_attention_rank"),
    )


def _custom_settings(config: Any) -> CustomSettings:
    return CustomSettings(
        lengths=Lengths(
            sys=_whole_or_none(config, "custom_sys_length"),
            img=_whole_or_none(config, "custom_image_token_length", lowest=1),
        ),
        kept=_whole(config, "custom_kept_tokens", lowest=1),
        agg_layer=_whole(config, "custom_agg_layer"),
        method=_method(config),
        temperature=_temperature(config),
        first_index=_whole_or_none(config, "custom_first_index"),
        drop=_switch(config, "custom_drop"),
    )


def _method(config: Any) -> str:
    value = getattr(config, "custom_selection_method", None)
    if value is None:
        return SELECTION_METHODS[0]
    if value not in SELECTION_METHODS:
        raise ValueError(f"custom_selection_method must be one of {', '.join(SELECTION_METHODS)}, got {value!r}")
    return str(value)


def _temperature(config: Any) -> float:
    value = getattr(config, "custom_temperature", None)
    if value is None:
        return 0.1  # the original's default
    # Real and Integral, not float and int: they take numpy's numbers in, and bool is refused by hand.
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < float("inf"):
        raise ValueError(f"custom_temperature must be a finite number greater than 0, got {value!r}")
    return float(value)


def _switch(config: Any, name: str) -> bool:
    value = getattr(config, name, None)
    if value in (None, False, True):  # 0, 1 and numpy's are equal to these; the text "false" would be true
        return bool(value)
    raise ValueError(f"{name} must be True or False, got {value!r}")


def _whole(config: Any, name: str, *, lowest: int = 0) -> int:
    value = getattr(config, name, None)
    if isinstance(value, bool) or not isinstance(value, Integral) or value < lowest:
        raise ValueError(f"{name} must be a whole number of at least {lowest}, got {value!r}")
    return int(value)


def _whole_or_none(config: Any, name: str, *, lowest: int = 0) -> int | None:
    return None if getattr(config, name, None) is None else _whole(config, name, lowest=lowest)


_READERS: dict[str, Callable[[Any], Settings]] = {
    "use_hmap_v": _himap_settings,
    "use_fast_v": _fastv_settings,
    "use_custom_selection": _custom_settings,
}
