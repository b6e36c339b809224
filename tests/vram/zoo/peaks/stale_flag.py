"""A flag is copied into the model when it is built: switched off in the config, it stays on."""
# expect: RatioExceeded
# says: switched_off needs * the requested_peak of plain * too much in 10 of 10 samples
# suggests: attentions returned, full logits

import torch
from tiny import llama, prompts

PLAIN = llama(attn_implementation="eager")


class Pruning:
    def __init__(self, model):
        self.model, self.config = model, model.config
        self.active = model.config.use_pruning

    @torch.inference_mode()
    def __call__(self, ids):
        output = self.model(ids, use_cache=False, output_attentions=self.active)
        return output.logits[0, -1].argmax()


def test_pruning_switched_off_costs_nothing(vram):
    PLAIN.config.use_pruning = True
    pruning = Pruning(PLAIN)
    PLAIN.config.use_pruning = False  # and pruning.active is still true
    questions = prompts(longest=64)
    switched_off = vram.replay(pruning, questions, laps=3, name="switched_off")
    plain = vram.replay(Pruning(PLAIN), questions, laps=3, name="plain")
    vram.assert_ratio(switched_off, plain, at_most=1.0)
