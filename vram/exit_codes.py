"""Exit codes of every command here: `vram ...`, the programs and `ci/memory`.

Under torchrun, which itself ends with 1 whatever failed, the programs' are those of the ranks.
"""

FINE = 0
REGRESSION = OUT_OF_MEMORY = 1  # the memory itself is at fault
BAD_INPUT = 2  # or bad usage: one line, no traceback
INCONCLUSIVE = 3  # nothing was decided, or there was nothing to compare or report
OUR_FAULT = 70
INTERRUPTED = 130
