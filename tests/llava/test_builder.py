from __future__ import annotations

import json
import re
import socket
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from himap import HimapLlavaForConditionalGeneration
from llava import placement
from llava.builder import Checkpoint, load_pretrained_model, open_checkpoint
from llava.errors import BadInput
from llava.model_shape import image_token_count
from llava.placement import placed, resolve_device, resolve_dtype

from .layouts import FORMS, plant, write_weights

WEIGHTS = "model.safetensors"
HEAD = "language_model.lm_head.weight"  # as it is called in the file


def _edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def _change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def _without(name: str) -> Callable[[Path], None]:
    def break_it(folder: Path) -> None:
        (folder / name).unlink()

    return break_it


def _truncated(folder: Path) -> None:
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def _pickle(content: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        torch.save(content, folder / "pytorch_model.bin")
        (folder / WEIGHTS).unlink()

    return write


def _index(shard: str, weights: str = WEIGHTS) -> Callable[[Path], None]:
    """An index that names `shard` only; the weights stand one folder further out, where "../" leads."""

    def write(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder.parent / WEIGHTS)
        (folder / f"{weights}.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))

    return write


def _broken_index(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / f"{WEIGHTS}.index.json").write_text("[]")


def _no_image_token(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("<image>", "<picture>"))
    _edit(folder / "tokenizer_config.json", image_token=...)


def _smaller_vocabulary(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["vocab_size"] = 1000
    (folder / "config.json").write_text(json.dumps(config))


def _edit_part(part: str, **changes: Any) -> Callable[[Path], None]:
    def break_it(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config[part] |= changes
        (folder / "config.json").write_text(json.dumps(config))

    return break_it


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (_without("config.json"), "config.json"),
    "config not JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
    "config a list": (lambda folder: (folder / "config.json").write_text("[]"), r"must be a JSON object, got \[\]"),
    "another model": (lambda folder: _edit(folder / "config.json", model_type="bert"), "model type llava, got 'bert'"),
    "another decoder": (_edit_part("text_config", model_type="qwen2"), "text_config must be of model type llama, got"),
    "another tower": (
        _edit_part("vision_config", model_type="siglip_vision_model"),
        "vision_config must be of model type clip_vision_model",
    ),
    "nonsense in config": (_edit_part("text_config", hidden_size="wide"), "config.json"),
    "no weights": (_without(WEIGHTS), f"must have {WEIGHTS} or pytorch_model.bin"),
    "a pickle of a list": (_pickle([torch.zeros(1)]), "'pytorch_model.bin' .*other things than named tensors"),
    "a pickle of numbers": (_pickle({"lm_head.weight": 1.0}), "other things than named tensors"),
    "a LoRA": (
        lambda folder: (folder / "adapter_config.json").write_text("{}"),
        "a LoRA must have been merged .* got one in",
    ),
    "truncated weights": (_truncated, f"weight file must be whole, got '{WEIGHTS}'"),
    "empty weights": (lambda folder: (folder / WEIGHTS).write_bytes(b""), "weight file must be whole"),
    "missing shard": (_index("model-00001-of-00002.safetensors"), "whole, got 'model-00001-of-00002.safetensors'"),
    "shard outside": (_index(f"../{WEIGHTS}"), f"must name files of its folder, got '../{WEIGHTS}'"),
    "pickled shard outside": (_index("../x.bin", "pytorch_model.bin"), "must name files of its folder, got '../x.bin'"),
    "broken index": (_broken_index, f"{WEIGHTS}.index.json"),
    "missing key": (
        lambda folder: _change_weights(folder, lambda weights: weights.pop(HEAD)),
        "missing lm_head.weight",
    ),
    "extra key": (
        lambda folder: _change_weights(folder, lambda weights: weights.update({"stray.weight": torch.zeros(1)})),
        "unexpected stray.weight",
    ),
    "misshapen key": (
        lambda folder: _change_weights(folder, lambda weights: weights.update({HEAD: torch.zeros(3, 3)})),
        "lm_head.weight",
    ),
    "no tokenizer": (_without("tokenizer.json"), "must have tokenizer.json or tokenizer.model"),
    "broken tokenizer": (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer"),
    "no image token": (_no_image_token, "token <image> with the config's id 3, got None"),
    "image token elsewhere": (
        lambda folder: _edit(folder / "config.json", image_token_index=9),
        "config's id 9, got 3",
    ),
    "smaller vocabulary": (_smaller_vocabulary, "at most the model's 1000 tokens"),
    "no image processor": (_without("preprocessor_config.json"), "image processor"),
    "other image size": (
        lambda folder: _edit(folder / "preprocessor_config.json", crop_size={"height": 224, "width": 224}),
        "must give 112 x 112 pixels",
    ),
    "no crop": (lambda folder: _edit(folder / "preprocessor_config.json", do_center_crop=False), "112 x 112 pixels"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_checkpoint_that_is_not_whole_is_refused(folder: Path, case: str, capfd: pytest.CaptureFixture[str]) -> None:
    """The message is one line with the rule, the file or key and the folder; nothing is printed beside it."""
    break_it, rule = BROKEN[case]
    break_it(folder)

    with pytest.raises(BadInput, match=rule) as caught:
        load_pretrained_model(folder)

    assert re.search(re.escape(str(folder)), str(caught.value))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_good_folder_loads_in_silence_and_without_the_network(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """No connection is tried, no progress bar shown, and transformers' logging is afterwards as it was."""
    monkeypatch.setattr(socket.socket, "connect", lambda *args: pytest.fail("the network was used"))
    logging.set_verbosity_info()
    try:
        load_pretrained_model(str(folder))
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled()
    finally:
        logging.set_verbosity_warning()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("form", FORMS)
def test_weights_in_every_form(folder: Path, form: str, model: HimapLlavaForConditionalGeneration) -> None:
    """Safetensors and pickles of tensors, whole and in shards, give the same weights; safetensors come first."""
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    write_weights(folder, weights, form)
    if "safetensors" in form:
        (folder / "pytorch_model.bin").write_text("not looked at")

    loaded = load_pretrained_model(folder)[1].state_dict()

    assert loaded.keys() == model.state_dict().keys()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("how", ["zip", "legacy", "bare"])
def test_a_pickle_is_never_run(folder: Path, tmp_path: Path, how: str) -> None:
    """Code planted in a weight file: one line that names the file and does not advise to trust it; nothing ran."""
    (folder / WEIGHTS).unlink()
    plant(folder / "pytorch_model.bin", tmp_path / "ran", how)

    with pytest.raises(BadInput, match=r"got 'pytorch_model.bin' in .*: it is no pickle of tensors only$"):
        load_pretrained_model(folder)

    assert not (tmp_path / "ran").exists()


def test_a_planted_pickle_would_run(tmp_path: Path) -> None:
    """Else the tests around would prove nothing: read without care, it does write its file."""
    plant(tmp_path / "x.bin", tmp_path / "ran", "zip")

    torch.load(tmp_path / "x.bin", weights_only=False)

    assert (tmp_path / "ran").exists()


def test_sampling_defaults_of_a_checkpoint_are_dropped(folder: Path) -> None:
    """Greedy answers need none, and transformers would warn; where an answer ends is kept."""
    _edit(folder / "generation_config.json", do_sample=True, temperature=0.9, top_p=0.6, eos_token_id=[2, 7])

    config = load_pretrained_model(folder)[1].generation_config

    assert (config.temperature, config.top_p, config.eos_token_id, config.pad_token_id) == (None, None, [2, 7], 4)


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [(None, torch.float32), ("float16", torch.float16), ("bfloat16", torch.bfloat16), (torch.float32, torch.float32),
     ("auto", torch.float16)],
)  # fmt: skip
def test_dtypes(folder: Path, dtype: Any, wanted: torch.dtype) -> None:
    """Chosen by name, as a torch dtype, as the checkpoint's own, or by the device: float32 on the CPU."""
    _change_weights(folder, lambda weights: weights.update({k: v.half() for k, v in weights.items()}))
    _edit(folder / "config.json", dtype="float16")

    assert load_pretrained_model(folder, dtype=dtype)[1].dtype == wanted


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"dtype": "int8"}, "dtype must be one of float32, float16, bfloat16, auto, got 'int8'"),
        ({"dtype": "cuda"}, "dtype must be one of"),
        ({"device": "tpu"}, "device must be auto, cpu, cuda or cuda:NUMBER, got 'tpu'"),
        ({"device": "cuda:-1"}, "device must be"),
        ({"device": "cuda:99"}, "device must be there, got cuda:99"),
        ({"attn_implementation": "fast"}, "must be one of sdpa, eager, flash_attention_2, got 'fast'"),
        ({"attn_implementation": "flash_attention_2"}, "needs a CUDA device and the package flash-attn"),
        ({"model_base": "base"}, "model base is for a projector in the original .* got 'base' for 'tiny'"),
        ({"load_8bit": True, "load_4bit": True}, "in 8 bit or in 4 bit, got both"),
        ({"device_map": "somewhere"}, "must be one of auto, .* or name a device for each module, got 'somewhere'"),
        ({"device_map": {"": "tpu"}}, "device must be auto, cpu, cuda or cuda:NUMBER, got 'tpu'"),
        ({"device_map": {"": 0}}, "device must be there, got cuda:0"),
        ({"device_map": {"": "disk"}}, "needs an offload_folder, got none"),
        ({"device_map": {"lm_head": "cpu"}}, "must place every parameter once, got none for model.vision_tower"),
        ({"device_map": {"": "cpu", "lm_head": "cpu"}}, "parameter once, got '' and 'lm_head' for lm_head.weight"),
        ({"device_map": {"": "cpu", "head": "cpu"}}, "must name modules of the model, got 'head'"),
    ],
)
def test_ways_to_load_that_are_not_there_are_refused(
    options: dict[str, Any], rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message lists what there is."""
    monkeypatch.setattr(placement, "is_accelerate_available", lambda: True)
    with pytest.raises(BadInput, match=rule):
        load_pretrained_model("tiny", **options)


@pytest.mark.parametrize("name", ["8b", "nothing", "/nowhere/llava", "../llava", "a/b/c", "", "a/b\0", "n" * 5000])
def test_a_name_that_is_no_model_is_refused_without_the_network(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither folder, preset nor hub id: the message says what a model may be."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **options: pytest.fail("fetched"))

    with pytest.raises(BadInput, match=r"the model"):
        open_checkpoint(name)


def test_a_file_is_no_model(folder: Path) -> None:
    """Also where the file is a checkpoint's own."""
    with pytest.raises(BadInput, match="must be a folder, not a file"):
        open_checkpoint(folder / WEIGHTS)


def test_a_hub_id_is_fetched_without_code_or_pickles(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only JSON, safetensors and the tokenizer are asked for; what comes is loaded like a folder."""
    asked = {}

    def fetch(hub_id: str, allow_patterns: list[str], local_files_only: bool) -> str:
        assert not local_files_only
        asked[hub_id] = allow_patterns
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)

    assert open_checkpoint("someone/llava-1.5").folder == folder
    assert asked == {"someone/llava-1.5": ["*.json", "*.safetensors", "tokenizer.model"]}


def test_a_hub_id_that_cannot_be_fetched_is_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the client raises, the user reads one line."""

    def fetch(hub_id: str, **options: Any) -> str:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)

    with pytest.raises(BadInput, match=r"that can be fetched, got 'someone/llava': no route$"):
        open_checkpoint("someone/llava")


def test_code_in_a_checkpoint_is_never_run(folder: Path, tmp_path: Path) -> None:
    """A checkpoint that brings its own classes has them ignored or is refused, without a question and unexecuted."""
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass")
    for name, auto in (
        ("config.json", {"AutoConfig": "evil.Evil"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["evil.Evil", None]}),
        ("preprocessor_config.json", {"AutoImageProcessor": "evil.Evil"}),
    ):
        _edit(folder / name, auto_map=auto)

    load_pretrained_model(folder)

    assert not (tmp_path / "ran").exists()


def test_running_out_of_memory_is_not_the_checkpoints_fault(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While loading, out of memory goes through as it is; it does not become bad input."""

    def full(*args: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(HimapLlavaForConditionalGeneration, "from_pretrained", full)
    with pytest.raises(torch.OutOfMemoryError):
        checkpoint.load_model(placed())


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """auto is CUDA where there is one; a number must be one of the cards."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == torch.device("cuda")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(BadInput, match="got cuda:2 with 2 CUDA devices"):
        resolve_device("cuda:2")
    assert resolve_dtype(None, torch.device("cuda")) == torch.float16


@pytest.mark.parametrize(("strategy", "tokens"), [("default", 576), ("full", 577)])
def test_image_tokens_of_the_real_tower(strategy: str, tokens: int) -> None:
    """336 pixels in patches of 14: 576 tokens, and the class token where it is kept."""
    vision = types.SimpleNamespace(image_size=336, patch_size=14)
    config: Any = types.SimpleNamespace(vision_config=vision, vision_feature_select_strategy=strategy)

    assert image_token_count(config) == tokens


def test_what_a_checkpoint_says_of_itself(folder: Path, checkpoint: Checkpoint) -> None:
    """Presets have random weights, folders have their own; image_aspect_ratio counts in Hugging Face's layout too."""
    assert (checkpoint.has_random_weights, checkpoint.pads_images) == (True, False)
    assert open_checkpoint("7b").has_random_weights
    _edit(folder / "config.json", image_aspect_ratio="pad")
    ours = open_checkpoint(folder)
    assert (ours.has_random_weights, ours.pads_images) == (False, True)
