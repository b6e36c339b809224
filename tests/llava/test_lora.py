"""LoRA checkpoints of LLaVA. Expected: plain transformers' logits of weights that were merged by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from llava.builder import load_pretrained_model, open_checkpoint
from llava.errors import BadInput

from .layouts import (
    ORIGINAL,
    TOWER,
    original_keys,
    plain_llava,
    plant,
    write_base,
    write_clip,
    write_json,
    write_original,
)
from .test_original import _logits

peft = pytest.importorskip("peft")

RANK, ALPHA = 4, 12
# As LLaVA's training leaves them: every linear layer of the decoder.
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SETTINGS: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "lmsys/vicuna-7b-v1.5",
    "auto_mapping": None,
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "layers_pattern": None,
    "layers_to_transform": None,
    "lora_alpha": ALPHA,
    "lora_dropout": 0.05,
    "modules_to_save": None,
    "r": RANK,
    "revision": None,
    "target_modules": TARGETS,
}
Broken = Callable[[Path], object]


@pytest.fixture(scope="module")
def base_llava() -> LlavaForConditionalGeneration:
    return plain_llava()


@pytest.fixture(scope="module")
def trained(base_llava: LlavaForConditionalGeneration) -> LlavaForConditionalGeneration:
    """The base with adapted layers and another projector; its adapter's tensors are its attribute."""
    trained = copy.deepcopy(base_llava)
    generator = torch.Generator().manual_seed(7)
    adapter: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, module in trained.model.language_model.named_modules():
            if name.rpartition(".")[2] in TARGETS:
                a = torch.randn(RANK, module.in_features, generator=generator)
                b = torch.randn(module.out_features, RANK, generator=generator)
                module.weight += ALPHA / RANK * (b @ a)
                adapter |= {
                    f"base_model.model.model.{name}.lora_{side}.weight": each for side, each in (("A", a), ("B", b))
                }
        for parameter in trained.model.multi_modal_projector.parameters():
            parameter += torch.randn(parameter.shape, generator=generator)
    assert len(adapter) == 4 * 7 * 2
    trained.adapter = adapter
    return trained


def _write(
    folder: Path, trained: LlavaForConditionalGeneration, form: str = "bin", beside: str = "base_model.model."
) -> Path:
    folder.mkdir()
    write_json(folder / "config.json", ORIGINAL)
    write_clip(folder / TOWER, trained)
    write_json(folder / "adapter_config.json", SETTINGS)
    if form == "bin":
        torch.save(trained.adapter, folder / "adapter_model.bin")
    else:
        save_file(trained.adapter, folder / "adapter_model.safetensors")
    projector = {key: tensor for key, tensor in original_keys(trained).items() if "mm_projector" in key}
    torch.save({beside + key: tensor for key, tensor in projector.items()}, folder / "non_lora_trainables.bin")
    return folder


@pytest.fixture
def lora(tmp_path: Path, trained: LlavaForConditionalGeneration) -> Path:
    return _write(tmp_path / "lora", trained)


@pytest.mark.share(2)
@pytest.mark.parametrize(
    ("form", "beside", "base"),
    [("bin", "base_model.model.", "llama"), ("safetensors", "base_model.model.", "llava"), ("bin", "", "llava")],
)
def test_logits(
    tmp_path: Path,
    base_llava: LlavaForConditionalGeneration,
    trained: LlavaForConditionalGeneration,
    form: str,
    beside: str,
    base: str,
) -> None:
    """On a LLaMA or on a whole LLaVA, whose projector is replaced: the logits of the merged model, not the base's."""
    write = write_base if base == "llama" else write_original
    folder = _write(tmp_path / "lora", trained, form, beside)

    _, model, _, _ = load_pretrained_model(folder, write(tmp_path / "base", base_llava))

    torch.testing.assert_close(_logits(model), _logits(trained))
    assert not torch.allclose(_logits(model), _logits(base_llava), atol=1e-2)
    assert not [name for name, _ in model.named_modules() if "lora" in name]


def test_half_precision(tmp_path: Path, base_llava: LlavaForConditionalGeneration, lora: Path) -> None:
    """Adapter and base in float16, as published: merged with float32's precision, then rounded once."""
    half = copy.deepcopy(base_llava).half()
    adapter = {key: tensor.half() for key, tensor in torch.load(lora / "adapter_model.bin", weights_only=True).items()}
    torch.save(adapter, lora / "adapter_model.bin")

    _, model, _, _ = load_pretrained_model(lora, write_base(tmp_path / "base", half), dtype="float16")

    layer = model.model.language_model.layers[3].mlp.up_proj
    sides = [adapter[f"base_model.model.model.layers.3.mlp.up_proj.lora_{side}.weight"].float() for side in "BA"]
    whole = half.model.language_model.layers[3].mlp.up_proj.weight.float() + ALPHA / RANK * (sides[0] @ sides[1])
    assert layer.weight.dtype == torch.float16
    torch.testing.assert_close(layer.weight.float(), whole, rtol=2**-10, atol=2**-10)


def _settings(folder: Path, **changes: Any) -> None:
    write_json(folder / "adapter_config.json", SETTINGS | changes)


def _without(folder: Path, key: str) -> None:
    tensors = torch.load(folder / "adapter_model.bin", weights_only=True)
    del tensors[key]
    torch.save(tensors, folder / "adapter_model.bin")


KEY = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("break_it", "rule"),
    [
        (lambda folder: (folder / "non_lora_trainables.bin").unlink(), "whole, got none of non_lora_trainables.bin in"),
        (lambda folder: (folder / "adapter_model.bin").unlink(), "got none of adapter_model.safetensors or ad"),
        (lambda folder: (folder / "adapter_config.json").unlink(), "got none of adapter_config.json in"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "whole and fitting adapter_config.json"),
        (lambda folder: _settings(folder, peft_type="IA3", r=...), "adapter_config.json|must be a LoRA"),
        (lambda folder: _settings(folder, modules_to_save=["lm_head"]), r"without modules_to_save, .*\['lm_head'\]"),
        (lambda folder: _settings(folder, r=8), "exactly the tensors that its config names, got other"),
        (lambda folder: _settings(folder, target_modules=["q_proj"]), "exactly the tensors that its config names"),
        (lambda folder: _settings(folder, target_modules=["nothing"]), "whole and fitting adapter_config.json"),
        (lambda folder: _without(folder, KEY), rf"got other \['{KEY}'\]"),
        (lambda folder: torch.save({}, folder / "non_lora_trainables.bin"), "missing .*model.mm_projector.0.bias"),
    ],
)  # fmt: skip
def test_broken(
    tmp_path: Path, base_llava: LlavaForConditionalGeneration, lora: Path, break_it: Broken, rule: str
) -> None:
    """One line that says what is missing or differs, before any weight is read."""
    break_it(lora)
    with pytest.raises(BadInput, match=rule) as caught:
        open_checkpoint(lora, write_base(tmp_path / "base", base_llava))
    assert "\n" not in str(caught.value)


def test_a_base_is_needed(lora: Path) -> None:
    """The adapter names one, but that is anyone's folder or hub id."""
    with pytest.raises(BadInput, match="a LoRA needs a model base, got none for"):
        open_checkpoint(lora)


def test_peft_is_needed(lora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package the message names it."""
    monkeypatch.setattr("llava.lora.is_peft_available", lambda: False)
    with pytest.raises(BadInput, match="a LoRA needs the package peft, which is missing"):
        open_checkpoint(lora)


@pytest.mark.share(5)
@pytest.mark.parametrize("how", ["zip", "legacy", "bare"])
@pytest.mark.parametrize("victim", ["adapter_model.bin", "non_lora_trainables.bin"])
def test_no_pickle_is_run(
    tmp_path: Path, base_llava: LlavaForConditionalGeneration, lora: Path, victim: str, how: str
) -> None:
    """Both `.bin` files are read as tensors only."""
    plant(lora / victim, tmp_path / "run", how)
    with pytest.raises(BadInput, match="no pickle of tensors only"):
        open_checkpoint(lora, write_base(tmp_path / "base", base_llava))
    assert not (tmp_path / "run").exists()


def test_the_config_s_own_targets_count(
    tmp_path: Path, base_llava: LlavaForConditionalGeneration, lora: Path, trained: LlavaForConditionalGeneration
) -> None:
    """An adapter of some layers with a rank and scale of their own changes these alone."""
    key = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    a, b = torch.randn(2, 32), torch.randn(32, 2)
    torch.save({key.format(1, "A"): a, key.format(1, "B"): b}, lora / "adapter_model.bin")
    own = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 3}}
    _settings(lora, target_modules=["q_proj"], layers_to_transform=[1], **own)

    _, model, _, _ = load_pretrained_model(lora, write_base(tmp_path / "base", base_llava))

    ours, plain = (each.model.language_model.state_dict() for each in (model, base_llava))
    changed = [name for name in ours if not torch.equal(ours[name][: len(plain[name])], plain[name])]
    assert changed == ["layers.1.self_attn.q_proj.weight"]
    torch.testing.assert_close(ours[changed[0]], plain[changed[0]] + 3 / 2 * (b @ a))
