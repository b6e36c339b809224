"""What a model can be loaded as. Plain words, so that a command line can list them without importing torch."""

from __future__ import annotations

DTYPES = ("float32", "float16", "bfloat16", "auto")
ATTENTIONS = ("sdpa", "eager", "flash_attention_2")
