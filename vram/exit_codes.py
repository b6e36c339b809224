"""The programs' exit codes. Under torchrun, which itself ends with 1 whatever failed, they are the ranks'."""

FINE, OUT_OF_MEMORY, BAD_INPUT, OUR_FAULT, INTERRUPTED = 0, 1, 2, 70, 130
