"""Offloading, 8 bit and 4 bit. What needs a GPU is checked up to what is handed to transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from himap import HimapLlavaForConditionalGeneration
from llava import placement
from llava.answering import Answerer
from llava.builder import Checkpoint, load_pretrained_model
from llava.errors import BadInput
from llava.modes import MODES, set_mode
from llava.placement import placed
from llava.questions import embedded_questions

from .layouts import needs_accelerate, on_cpu_but

DISK = {"all on the CPU": {"": "cpu"}, "two layers on the disk": on_cpu_but(1, 2), "all layers": on_cpu_but(0, 1, 2, 3)}


def _flags(mode: str) -> dict[str, Any]:
    return {"custom_first_index": 0} if mode.startswith("custom") else {}


class TestDeviceMap:
    @pytest.mark.share(6)
    @needs_accelerate
    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("device_map", [*DISK.values(), "auto"], ids=[*DISK, "auto"])
    def test_same_logits(
        self,
        model: HimapLlavaForConditionalGeneration,
        checkpoint: Checkpoint,
        tmp_path: Path,
        mode: str,
        device_map: Any,
    ) -> None:
        """Layers on the disk are read when their turn comes: logits and answers are the same, bit for bit."""
        offloaded = checkpoint.load_model(placed(device_map=device_map, offload_folder=tmp_path / "offloaded"))
        assert ("meta" in {parameter.device.type for parameter in offloaded.parameters()}) == (
            device_map not in ("auto", {"": "cpu"})
        )
        question = embedded_questions(1)[0]
        results: list[tuple[Tensor, str]] = []
        for each in (model, offloaded):
            set_mode(each, mode, **_flags(mode))
            answerer = Answerer(checkpoint.tokenizer, each, checkpoint.image_processor, max_new_tokens=4)
            with torch.inference_mode():
                logits = each(**answerer.inputs(question), use_cache=False).logits
            results.append((logits, answerer.answer(question).text))

        assert torch.equal(results[0][0], results[1][0])
        assert results[0][1] == results[1][1]

    @needs_accelerate
    def test_safetensors_are_not_copied(self, checkpoint: Checkpoint, tmp_path: Path) -> None:
        """Weights that are safetensors already are read where they are."""
        checkpoint.load_model(placed(device_map=on_cpu_but(1), offload_folder=tmp_path / "offloaded"))

        assert not any((tmp_path / "offloaded").iterdir())

    @needs_accelerate
    def test_inputs_need_a_device(self, checkpoint: Checkpoint, tmp_path: Path) -> None:
        """The first module says where inputs go: it can't be on the disk."""
        device_map = on_cpu_but() | {"model.vision_tower": "disk"}

        with pytest.raises(BadInput, match=r"keep the first module, the vision tower, on a device, got"):
            checkpoint.load_model(placed(device_map=device_map, offload_folder=tmp_path))

    def test_needs_accelerate(self, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without the package it is refused in words."""
        monkeypatch.setattr(placement, "is_accelerate_available", lambda: False)

        with pytest.raises(BadInput, match="a device map needs the package accelerate"):
            checkpoint.load_model(placed(device_map="auto"))

    def test_the_dtype_follows_the_map(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Some of it on CUDA: float16, as on one CUDA device; else float32. `device` has no say then."""
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(placement, "is_accelerate_available", lambda: True)

        assert placed(device_map={"a": "cpu", "b": 1}).dtype == torch.float16
        assert placed(device_map={"a": "cpu", "b": "cuda:1"}).device == torch.device("cuda:1")
        assert placed(device="cuda", device_map={"": "cpu"}).dtype == torch.float32


class TestQuantised:
    @pytest.mark.parametrize("bits", [8, 4])
    @pytest.mark.parametrize(
        ("device", "bitsandbytes", "accelerate", "got"),
        [
            ("cpu", True, True, "got cpu, no package missing"),
            ("cpu", False, True, "got cpu, bitsandbytes missing"),
            ("cuda", False, True, "got cuda, bitsandbytes missing"),
            ("cuda", True, False, "got cuda, accelerate missing"),
            ("cuda:0", False, False, "got cuda:0, bitsandbytes and accelerate missing"),
        ],
    )
    def test_refused(
        self,
        bits: int,
        device: str,
        bitsandbytes: bool,
        accelerate: bool,
        got: str,
        monkeypatch: pytest.MonkeyPatch,
        checkpoint: Checkpoint,
    ) -> None:
        """Without CUDA or a package: the message says what is needed and which of it is missing."""
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(placement, "is_bitsandbytes_available", lambda: bitsandbytes)
        monkeypatch.setattr(placement, "is_accelerate_available", lambda: accelerate)

        rule = f"loading in {bits} bit needs a CUDA device and the packages bitsandbytes and accelerate, {got}$"
        with pytest.raises(BadInput, match=rule):
            checkpoint.load_model(placed(device=device, load_8bit=bits == 8, load_4bit=bits == 4))

    @pytest.mark.parametrize("device_map", [None, "auto"])
    @pytest.mark.parametrize("bits", [8, 4])
    def test_what_transformers_is_told(
        self, bits: int, device_map: str | None, monkeypatch: pytest.MonkeyPatch, model: Any
    ) -> None:
        """bitsandbytes for the decoder only: vision tower, projector and head stay as they are. Never moved after."""
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(placement, "is_bitsandbytes_available", lambda: True)
        monkeypatch.setattr(placement, "is_accelerate_available", lambda: True)
        loading: dict[str, Any] = {}

        def load(source: Any, **options: Any) -> Any:
            loading.update(options)
            return model

        monkeypatch.setattr(HimapLlavaForConditionalGeneration, "from_pretrained", load)
        monkeypatch.setattr(model, "hf_quantizer", object(), raising=False)
        monkeypatch.setattr(model, "to", lambda *args: pytest.fail("moved"))

        load_pretrained_model("tiny", device="cuda", device_map=device_map, load_8bit=bits == 8, load_4bit=bits == 4)

        quantization = loading["quantization_config"]
        assert quantization.load_in_8bit == (bits == 8)
        assert quantization.load_in_4bit == (bits == 4)
        assert set(quantization.llm_int8_skip_modules) == {
            "model.vision_tower", "model.multi_modal_projector", "lm_head"
        }  # fmt: skip
        assert {name.partition(".")[0] for name, _ in model.named_children()} == {"model", "lm_head"}
        assert loading["dtype"] == torch.float16
        assert loading["device_map"] == ("auto" if device_map else {"": torch.device("cuda")})
        if bits == 4:
            assert quantization.bnb_4bit_compute_dtype == torch.float16
            assert (quantization.bnb_4bit_quant_type, quantization.bnb_4bit_use_double_quant) == ("nf4", True)

    def test_a_checkpoint_that_is_quantised_already(self, folder: Path) -> None:
        """A quantisation of its own config is refused in one line where the packages are not there."""
        config = json.loads((folder / "config.json").read_text())
        quantization = {"quant_method": "bitsandbytes", "load_in_4bit": True}
        (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))

        with pytest.raises(BadInput, match="whole and fitting set of weights") as caught:
            load_pretrained_model(folder)
        assert "\n" not in str(caught.value)
