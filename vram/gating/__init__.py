"""The gate: pytest in a process of its own, its run compared with the recorded base, one verdict; `vram init`."""
