"""Lines that a program prints before it answers."""

from __future__ import annotations

from llava.eval.preparation import Run
from llava.eval.terminal import say
from llava.modes import MODES, mode_without_effect


def print_beginning(run: Run) -> None:
    """Print technique, model, device, dtype and mode, and what a reader of the results may not expect."""
    options, checkpoint, placement = run.options, run.checkpoint, run.placement
    say(f"{MODES[run.mode].technique} WILL BE USED ------")
    base = f" on {options.model_base}" if options.model_base else ""
    quantised = " in 8 bit" * options.load_8bit + " in 4 bit" * options.load_4bit
    dtype = "its own dtype" if placement.dtype == "auto" else str(placement.dtype).removeprefix("torch.")
    device = f"device map {options.device_map}" if options.device_map else run.model_config["device"]
    say(f"Model: {options.model_path}{base}, on {device}, {dtype}{quantised}, {run.model_config['attn']} attention")
    flags = ", ".join(f"{name} {value}" for name, value in run.flags.items() if value is not None)
    say(f"Mode: {run.mode}{f' ({flags})' if flags else ''}")
    if remark := mode_without_effect(checkpoint.config, run.mode, **run.chosen_flags):
        say(remark)
    if checkpoint.has_random_weights:
        say("The weights are random: answers mean nothing, memory and speed do.")
    if checkpoint.pads_images and options.image_aspect_ratio != "pad":
        say(
            "The checkpoint's image_aspect_ratio is pad; images are cropped, as by the original HiMAP "
            "(--image-aspect-ratio pad)"
        )
    if run.earlier is not None:
        say(f"Resumed: {len(run.earlier.answers)} of {len(run.questions)} answers are in {run.earlier.file}")
