"""The inference modes: which there are, which flags each sets, and switching a loaded model from one to another.

A mode is one file of this folder and one line below. Programs, forecasts, the memory suite and its outcome go through
`MODES`. Imports no torch until flags are checked.
"""

from __future__ import annotations

# In the order in which tables list them.
# isort: off
from llava.modes import baseline as baseline
from llava.modes import himap as himap
from llava.modes import fastv as fastv
from llava.modes import custom as custom

# isort: on
from llava.modes.registry import MODES, Choice, Mode, Option, register
from llava.modes.switching import default_flags, default_new_tokens, mode_flags, mode_without_effect, set_mode
from vram.explanation.declared import categorize

categorize("pruning", "himap.scoring", "himap.selection")

__all__ = [
    "MODES",
    "Choice",
    "Mode",
    "Option",
    "default_flags",
    "default_new_tokens",
    "mode_flags",
    "mode_without_effect",
    "register",
    "set_mode",
]
