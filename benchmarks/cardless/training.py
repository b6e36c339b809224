"""Training steps of whole models, at small sizes and of random weights, on both sides:

python -m benchmarks.cardless -- -m benchmarks.cardless.training [--output-folder ci/evidence] [STEP ...]
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (as everybody calls it)

from benchmarks.cardless import evidence
from benchmarks.cardless.values import Values
from vram.cards import Card
from vram.simulated.context import SimulatedCuda

Figures = list[int]  # bytes: allocated, requested, reserved
Step = Callable[[], Figures]  # returns the peaks before the optimizer
FIGURES = ("peak until the optimizer", "peak", "kept")
TOKENS, VOCABULARY = 70, 1000
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
_VISION: dict[str, Any] = {
    "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256, "image_size": 64,
    "patch_size": 16,
}  # fmt: skip
_IMAGE = 999  # the token that stands for a part of the picture


class UNet(nn.Module):
    """A small U-Net: down twice, up twice, joined at each level."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.first, self.second = self._block(3, channels), self._block(channels, 2 * channels)
        self.lowest = self._block(2 * channels, 4 * channels)
        self.up = nn.ModuleList(
            [nn.ConvTranspose2d(4 * channels, 2 * channels, 2, 2), nn.ConvTranspose2d(2 * channels, channels, 2, 2)]
        )
        self.joined = nn.ModuleList([self._block(4 * channels, 2 * channels), self._block(2 * channels, channels)])
        self.last = nn.Conv2d(channels, 3, 1)

    @staticmethod
    def _block(wide: int, to: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(wide, to, 3, padding=1), nn.GroupNorm(4, to), nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        """Pictures of the same size."""
        first = self.first(x)
        second = self.second(F.max_pool2d(first, 2))
        lowest = self.lowest(F.max_pool2d(second, 2))
        middle = self.joined[0](torch.cat([self.up[0](lowest), second], 1))
        return self.last(self.joined[1](torch.cat([self.up[1](middle), first], 1)))  # type: ignore[no-any-return]


def _ids(rows: int = 2) -> Tensor:
    return torch.full((rows, TOKENS), 5, dtype=torch.long, device="cuda")


def _pictures(size: int = 64) -> Tensor:
    return torch.zeros(2, 3, size, size, device="cuda")


def _classes() -> Tensor:
    return torch.zeros(2, dtype=torch.long, device="cuda")


def _train(
    model: Any,
    loss: Callable[[Any], Tensor],
    optimizer: Callable[..., Any] = torch.optim.AdamW,
    *,
    amp: torch.dtype | None = None,
    clip: bool = False,
    accumulate: int = 1,
) -> Step:
    """One step of training on the card."""
    model = model.train().to("cuda")
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizing = optimizer(weights, lr=1e-4)
    scaler = torch.amp.GradScaler("cuda", enabled=amp is torch.float16)

    def step() -> Figures:
        for _ in range(accumulate):
            with torch.autocast("cuda", amp) if amp else nullcontext():
                output = loss(model) / accumulate
            scaler.scale(output).backward()
            del output
        peaks = now("peak")
        if clip:
            scaler.unscale_(optimizing)
            nn.utils.clip_grad_norm_(weights, 1.0)
        scaler.step(optimizing)
        scaler.update()
        optimizing.zero_grad()
        return peaks

    return step


def _of_text(model: Any) -> Tensor:
    ids = _ids()
    return model(input_ids=ids, labels=ids).loss  # type: ignore[no-any-return]


def _of_pictures(model: Any) -> Tensor:
    return model(pixel_values=_pictures(), labels=_classes()).loss  # type: ignore[no-any-return]


def _llama(**options: Any) -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**_SIZES, **options))


def _checkpointed(*, reentrant: bool) -> Any:
    model = _llama(use_cache=False)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    return model


def _with_lora() -> Any:
    import peft

    return peft.get_peft_model(_llama(), peft.LoraConfig(r=8, target_modules=["q_proj", "v_proj"], lora_dropout=0.1))


def _llava() -> Any:
    """LLaVA of which the projector alone is trained, as in its first stage."""
    text, vision = transformers.LlamaConfig(**_SIZES), transformers.CLIPVisionConfig(**_VISION)
    model = transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_id=_IMAGE)
    )
    model.requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(True)
    return model


def _of_llava(model: Any) -> Tensor:
    ids = torch.tensor([[1, *[_IMAGE] * 16, *[5] * 30]], device="cuda")
    labels = ids.masked_fill(ids == _IMAGE, -100)
    return model(input_ids=ids, pixel_values=_pictures()[:1], labels=labels).loss  # type: ignore[no-any-return]


def _of_bert(model: Any) -> Tensor:
    ids = _ids()
    return model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=_classes()).loss  # type: ignore[no-any-return]


def _of_unet(model: Any) -> Tensor:
    return F.mse_loss(model(_pictures()), _pictures())


def _of_last(model: Any) -> Tensor:
    """The same of pictures with their channels last."""
    return F.mse_loss(model(_pictures().to(memory_format=torch.channels_last)), _pictures())


def _of_classes_last(model: Any) -> Tensor:
    pictures = _pictures().to(memory_format=torch.channels_last)
    return model(pixel_values=pictures, labels=_classes()).loss  # type: ignore[no-any-return]


def _of_critic(model: Any) -> Tensor:
    """A gradient penalty: a gradient of gradients."""
    mixed = torch.rand(8, 32, device="cuda").requires_grad_()
    (gradient,) = torch.autograd.grad(model(mixed), mixed, torch.ones(8, 1, device="cuda"), create_graph=True)
    return model(mixed.detach()).mean() + 10 * ((gradient.norm(2, dim=1) - 1) ** 2).mean()


def _resnet() -> Any:
    sizes: dict[str, Any] = {"embedding_size": 32, "hidden_sizes": [32, 64, 128, 256], "depths": [1, 1, 1, 1]}
    return transformers.ResNetForImageClassification(transformers.ResNetConfig(**sizes, num_labels=10))


def _mamba() -> Any:
    """Mamba without its own kernels: one token's state after the other."""
    sizes: dict[str, Any] = {"hidden_size": 128, "num_hidden_layers": 2, "state_size": 16}
    return transformers.MambaForCausalLM(transformers.MambaConfig(vocab_size=VOCABULARY, **sizes))


def _t5() -> Any:
    sizes: dict[str, Any] = {"d_model": 256, "d_kv": 64, "d_ff": 512, "num_layers": 2, "num_heads": 4}
    config = transformers.T5Config(vocab_size=VOCABULARY, decoder_start_token_id=0, **sizes)
    return transformers.T5ForConditionalGeneration(config)


_HALF, _BRAIN = torch.float16, torch.bfloat16
_MOMENTUM = partial(torch.optim.SGD, momentum=0.9)


def steps() -> dict[str, Callable[[], Step]]:
    """Training steps by name: a model, how its numbers are kept, its optimizer."""
    bert, vit = transformers.BertConfig(**_SIZES), transformers.ViTConfig(**_VISION, num_labels=10)
    gpt2 = transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=256, n_layer=2, n_head=4)
    return {
        "llama": lambda: _train(_llama(), _of_text),
        "llama, fused AdamW, clipped": lambda: _train(
            _llama(), _of_text, partial(torch.optim.AdamW, fused=True), clip=True
        ),
        "llama, AdamW one by one": lambda: _train(_llama(), _of_text, partial(torch.optim.AdamW, foreach=False)),
        "llama, bfloat16": lambda: _train(_llama().to(_BRAIN), _of_text),
        "llama, autocast to bfloat16": lambda: _train(_llama(), _of_text, amp=_BRAIN, clip=True),
        "llama, autocast to float16, scaled": lambda: _train(_llama(), _of_text, amp=_HALF, clip=True),
        "llama, eager attention": lambda: _train(_llama(attn_implementation="eager"), _of_text),
        "llama, accumulated over 3": lambda: _train(_llama(), _of_text, accumulate=3),
        "llama, checkpointed": lambda: _train(_checkpointed(reentrant=False), _of_text),
        "llama, checkpointed, reentrant": lambda: _train(_checkpointed(reentrant=True), _of_text),
        "llama, checkpointed, autocast": lambda: _train(_checkpointed(reentrant=False), _of_text, amp=_BRAIN),
        "llama, LoRA": lambda: _train(_with_lora(), _of_text),
        "llama, LoRA, autocast": lambda: _train(_with_lora(), _of_text, amp=_BRAIN),
        "gpt2": lambda: _train(transformers.GPT2LMHeadModel(gpt2), _of_text),
        "llava's projector": lambda: _train(_llava(), _of_llava),
        "llava's projector, autocast": lambda: _train(_llava(), _of_llava, amp=_BRAIN),
        "bert": lambda: _train(transformers.BertForSequenceClassification(bert), _of_bert),
        "bert, autocast, scaled": lambda: _train(
            transformers.BertForSequenceClassification(bert), _of_bert, amp=_HALF
        ),
        "vit": lambda: _train(transformers.ViTForImageClassification(vit), _of_pictures),
        "vit, autocast": lambda: _train(transformers.ViTForImageClassification(vit), _of_pictures, amp=_BRAIN),
        "resnet, SGD": lambda: _train(_resnet(), _of_pictures, _MOMENTUM),
        "resnet, SGD, autocast, scaled": lambda: _train(_resnet(), _of_pictures, _MOMENTUM, amp=_HALF),
        "resnet, channels last": lambda: _train(_resnet().to(memory_format=torch.channels_last), _of_classes_last),
        "unet": lambda: _train(UNet(), _of_unet),
        "unet, channels last, autocast": lambda: _train(
            UNet().to(memory_format=torch.channels_last), _of_last, amp=_BRAIN
        ),
        "critic with a gradient penalty": lambda: _train(
            nn.Sequential(nn.Linear(32, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1)), _of_critic
        ),
        "t5": lambda: _train(_t5(), _of_text),
        "mamba": lambda: _train(_mamba(), _of_text),
    }  # fmt: skip


def begin() -> None:
    """Let cuBLAS take its workspaces, in this thread and in autograd's, which then are no step's."""
    for bias in (False, True):
        layer = nn.Linear(8, 8, bias=bias, device="cuda")
        layer(torch.zeros(8, 8, device="cuda", requires_grad=True)).sum().backward()


def measured(make: Callable[[], Step]) -> dict[str, Figures]:
    """Peaks of a second step beyond what was there before its model: three peaks or levels each."""
    gc.collect()
    torch.cuda.empty_cache()
    before = now("current")
    step = make()
    step()
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    backward = step()
    figures = dict(zip(FIGURES, (backward, now("peak"), now("current")), strict=True))
    return {name: [now - then for now, then in zip(each, before, strict=True)] for name, each in figures.items()}


def now(which: str) -> Figures:
    stats = torch.cuda.memory_stats()
    return [stats[f"{figure}_bytes.all.{which}"] for figure in ("allocated", "requested", "reserved")]


def all_measured(within: AbstractContextManager[object], names: Collection[str]) -> dict[str, dict[str, Figures]]:
    """The figures of the steps of those names, one after the other on one card; of all where there are no names."""
    with within, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        begin()
        return {name: measured(make) for name, make in steps().items() if not names or name in names}


def compare(card: Card, folder: Path, names: Collection[str]) -> None:
    """Run both sides, print where they differ, and write it down unless only some steps were asked for."""
    theirs, ours = all_measured(Values(), names), all_measured(SimulatedCuda(card), names)
    unlike = [name for name in theirs if theirs[name] != ours[name]]
    for name in unlike:
        print(f"{name}: torch {theirs[name]}, simulated {ours[name]}")
    print(f"training steps: {len(theirs) - len(unlike)} of {len(theirs)} equal")
    if not names:
        evidence.write_compared(folder, "training", "steps", card, theirs, ours)


if __name__ == "__main__":
    its_card, options, _ = evidence.arguments("training", "steps")
    compare(its_card, options.output_folder, options.steps)
