"""Plain LLaVA: nothing is pruned, and no code of ours runs."""

from __future__ import annotations

from llava.modes.registry import Choice, Mode, register

register(
    Mode(
        name="baseline",
        technique="NO TOKEN PRUNING TECHNIQUE",
        defaults=lambda shape: {},
        programs={
            "custom-selection-inference": Choice("--baseline", "no token selection: plain LLaVA (default: custom-fps)")
        },
    )
)
