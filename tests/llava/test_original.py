"""The original LLaVA's layout, and projectors with a base. Expected: plain transformers' logits of its weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from llava.answering import Answerer
from llava.builder import load_pretrained_model, open_checkpoint
from llava.errors import BadInput
from llava.modes import set_mode
from llava.placement import placed
from llava.questions import embedded_questions

from .layouts import (
    DECODER,
    FORMS,
    IMAGE_TOKENS,
    ROWS,
    TOKENS,
    TOWER,
    needs_accelerate,
    on_cpu_but,
    plain_llava,
    plant,
    sentencepiece_model,
    write_base,
    write_clip,
    write_json,
    write_original,
    write_projector,
    write_weights,
)

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def plain() -> LlavaForConditionalGeneration:
    return plain_llava()


@pytest.fixture
def original(tmp_path: Path, plain: LlavaForConditionalGeneration) -> Path:
    return write_original(tmp_path / "llava-v1.5", plain)


@pytest.fixture
def projector(tmp_path: Path, plain: LlavaForConditionalGeneration) -> tuple[Path, Path]:
    """A projector's folder and its base."""
    return write_projector(tmp_path / "projector", plain), write_base(tmp_path / "vicuna", plain)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's cache is empty, and asking the network is a fault."""

    def nothing(hub_id: str, *, local_files_only: bool, **options: Any) -> str:
        if not local_files_only:
            pytest.fail(f"fetched {hub_id}")
        raise FileNotFoundError(hub_id)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", nothing)


def _inputs(image_token: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(3, TOKENS - 1, (9,), generator=generator).tolist()
    ids = torch.tensor([text[:3] + [image_token] * IMAGE_TOKENS + text[3:]])
    pixels = torch.randn(1, 3, 16, 16, generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def _logits(model: Any) -> Tensor:
    """Logits (1, tokens, TOKENS) of the tokens that the original knows."""
    with torch.inference_mode():
        logits = model(**_inputs(model.config.image_token_id), use_cache=False).logits
    assert isinstance(logits, Tensor)
    return logits[..., :TOKENS]


def _edit(file: Path, **changes: Any) -> None:
    write_json(file, json.loads(file.read_text()) | changes)


def _change(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


class TestWhole:
    @pytest.mark.share(3)
    @pytest.mark.parametrize("tower_inside", [False, True], ids=["its CLIP beside it", "its CLIP inside"])
    @pytest.mark.parametrize("form", FORMS)
    def test_logits(self, tmp_path: Path, plain: LlavaForConditionalGeneration, form: str, tower_inside: bool) -> None:
        """Whatever form the files have and wherever the tower's weights stand: plain LLaVA's logits, bit for bit."""
        folder = write_original(tmp_path / "x", plain, form, tower_inside=tower_inside)

        _, model, _, context_len = load_pretrained_model(folder)

        assert torch.equal(_logits(model), _logits(plain))
        assert context_len == 256

    def test_an_unknown_type_name_is_no_hindrance(self, original: Path, plain: LlavaForConditionalGeneration) -> None:
        """The first releases call themselves "llava", later ones "llava_llama", which transformers does not know."""
        _edit(original / "config.json", model_type="llava_llama")

        assert torch.equal(_logits(load_pretrained_model(original)[1]), _logits(plain))

    def test_the_vocabulary_grows(self, original: Path, plain: LlavaForConditionalGeneration) -> None:
        """<image> and <pad> come after the original's tokens; new rows are the mean, so that none is ever answered."""
        tokenizer, model, _, _ = load_pretrained_model(original)

        ids = tokenizer.get_vocab()
        assert (ids["<image>"], ids["<pad>"], tokenizer.pad_token_id) == (TOKENS, TOKENS + 1, TOKENS + 1)
        assert tokenizer("a<image>").input_ids[-1] == model.config.image_token_id == TOKENS
        assert tokenizer.decode([TOKENS, TOKENS + 1], skip_special_tokens=True) == ""
        assert model.config.text_config.vocab_size == model.get_input_embeddings().num_embeddings == ROWS
        for ours, theirs in (
            (model.get_input_embeddings().weight, plain.get_input_embeddings().weight),
            (model.lm_head.weight, plain.lm_head.weight),
        ):
            assert torch.equal(ours[:TOKENS], theirs)
            mean = theirs.mean(dim=0)
            assert all(torch.allclose(row, mean, atol=1e-6) for row in ours[TOKENS:])

    def test_a_larger_vocabulary_stays(self, tmp_path: Path, plain: LlavaForConditionalGeneration) -> None:
        """Where the model has rows for <image> and <pad> already, none are added."""
        folder = write_original(tmp_path / "x", plain)
        _edit(folder / "config.json", vocab_size=333)

        def widen(weights: dict[str, Tensor]) -> None:
            for key in ("model.embed_tokens.weight", "lm_head.weight"):
                weights[key] = torch.cat([weights[key], torch.zeros(33, 32)])

        _change(folder, widen)

        _, model, _, _ = load_pretrained_model(folder)

        assert model.lm_head.out_features == 333
        assert torch.equal(_logits(model), _logits(plain))

    def test_the_config_is_read_by_hand(self, original: Path) -> None:
        """Every setting of the file reaches the model; nothing is a default of transformers' LLaVA."""
        _edit(
            original / "config.json",
            mm_vision_select_layer=-3,
            mm_vision_select_feature="cls_patch",
            rope_theta=5e5,
            rope_scaling={"type": "linear", "factor": 2.0},
            torch_dtype="bfloat16",
        )

        checkpoint = open_checkpoint(original)

        config = checkpoint.config
        text, vision = config.text_config, config.vision_config
        assert {key: getattr(text, key) for key in DECODER if key != "vocab_size"} == {
            key: value for key, value in DECODER.items() if key != "vocab_size"
        }
        assert text.rope_parameters["rope_theta"] == 5e5
        assert (text.rope_parameters["rope_type"], text.rope_parameters["factor"]) == ("linear", 2.0)
        assert (vision.hidden_size, vision.image_size, vision.patch_size) == (16, 16, 4)
        assert (config.vision_feature_layer, config.vision_feature_select_strategy) == (-3, "full")
        assert config.image_seq_length == IMAGE_TOKENS + 1
        assert config.projector_hidden_act == "gelu"
        assert checkpoint.load_model(placed(dtype="auto")).dtype == torch.bfloat16

    def test_it_answers(self, original: Path) -> None:
        """From a question with a picture to text, in every mode."""
        tokenizer, model, image_processor, _ = load_pretrained_model(original)
        answerer = Answerer(tokenizer, model, image_processor, max_new_tokens=3, min_new_tokens=3)
        model.config.text_config.max_position_embeddings = 4096  # the embedded questions are longer than its own

        for mode in ("baseline", "himap", "custom-fps", "custom-tome"):
            set_mode(model, mode)
            answer = answerer.answer(embedded_questions(1)[0])
            assert answer.tokens == 3

    @pytest.mark.parametrize("target", ["", "tower"])
    def test_round_trip(self, tmp_path: Path, plain: LlavaForConditionalGeneration, target: str) -> None:
        """Saved, it is in Hugging Face layout: we and plain transformers read it, with the same logits."""
        folder = write_original(tmp_path / "x", plain, tower_inside=target == "tower")
        tokenizer, model, image_processor, _ = load_pretrained_model(folder)
        saved = tmp_path / "saved"
        for part in (model, tokenizer, image_processor):
            part.save_pretrained(saved)

        again = load_pretrained_model(saved)
        by_transformers, info = LlavaForConditionalGeneration.from_pretrained(saved, output_loading_info=True)

        assert not any(info.values())
        for loaded in (again[1], by_transformers):
            assert torch.equal(_logits(loaded), _logits(plain))
        text = "What <image> is this?</s>"
        assert again[0](text).input_ids == tokenizer(text).input_ids
        assert again[0].pad_token_id == tokenizer.pad_token_id

    @needs_accelerate
    def test_offloaded_to_the_disk(self, tmp_path: Path, plain: LlavaForConditionalGeneration) -> None:
        """Weights that are pickles are written into the offload folder, and the logits are the same."""
        folder = write_original(tmp_path / "x", plain, "bin")
        device_map = on_cpu_but(1, 3)

        _, model, _, _ = load_pretrained_model(folder, device_map=device_map, offload_folder=tmp_path / "offloaded")

        assert len(list((tmp_path / "offloaded").glob("*layers.1*.safetensors"))) == 9
        assert torch.equal(_logits(model), _logits(plain))


class TestTower:
    @pytest.mark.share(3)
    @pytest.mark.parametrize("form", ["bin", "sharded safetensors"])
    @pytest.mark.parametrize("whole", [True, False], ids=["with CLIP's text half", "alone"])
    def test_forms_of_clip(self, original: Path, plain: LlavaForConditionalGeneration, form: str, whole: bool) -> None:
        """CLIP as OpenAI's repository has it, or CLIPVisionModel as transformers saves it."""
        shutil.rmtree(original / TOWER)
        write_clip(original / TOWER, plain, form, whole=whole)

        assert torch.equal(_logits(load_pretrained_model(original)[1]), _logits(plain))

    @pytest.mark.parametrize(
        "place", ["named so", "by its last name", "relative", "from here", "absolute", "the hub's cache"]
    )
    def test_places(
        self,
        original: Path,
        plain: LlavaForConditionalGeneration,
        place: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """In a folder of the checkpoint, anywhere the config's name leads, or in the hub's cache; never fetched."""
        clip = tmp_path / "elsewhere" / "clip"
        shutil.move(original / TOWER, clip)
        monkeypatch.chdir(tmp_path)
        names = {"relative": "../elsewhere/clip", "from here": "elsewhere/clip", "absolute": str(clip)}
        name = names.get(place, "someone/clip")
        if place == "named so":
            shutil.move(clip, original / "someone" / "clip")
        elif place == "by its last name":
            shutil.move(clip, original / "clip")
        elif place == "the hub's cache":

            def cache(hub_id: str, *, local_files_only: bool, **options: Any) -> str:
                assert (hub_id, local_files_only) == ("someone/clip", True)
                return str(clip)

            monkeypatch.setattr(huggingface_hub, "snapshot_download", cache)
        _edit(original / "config.json", mm_vision_tower=name)

        assert torch.equal(_logits(load_pretrained_model(original)[1]), _logits(plain))

    @pytest.mark.parametrize("name", ["openai/clip-vit-large-patch14-336", "/nowhere/clip", "clip", "a\0b", "n" * 5000])
    def test_missing(self, original: Path, name: str) -> None:
        """A folder's config may name a hub id; the user has not. It is not fetched but asked for."""
        shutil.rmtree(original / TOWER)
        _edit(original / "config.json", mm_vision_tower=name)

        with pytest.raises(
            BadInput, match=r"the vision tower '.* must be on this machine, in folder .* of the checkpoint"
        ):
            open_checkpoint(original)

    def test_fetched_for_a_fetched_checkpoint(
        self, original: Path, plain: LlavaForConditionalGeneration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where the user named a hub id, what belongs to it is fetched too: pickles if there is nothing else."""
        clip = tmp_path / "clip"
        shutil.move(original / TOWER, clip)
        weights = load_file(original / WEIGHTS)
        (original / WEIGHTS).unlink()
        _edit(original / "config.json", mm_vision_tower="openai/clip")
        fetched: list[tuple[str, bool]] = []

        def fetch(hub_id: str, *, allow_patterns: list[str], local_files_only: bool) -> str:
            assert not local_files_only
            fetched.append((hub_id, "pytorch_model*.bin" in allow_patterns))
            if fetched[-1] == ("liuhaotian/llava", True):
                write_weights(original, weights, "sharded bin")
            return str(clip if hub_id == "openai/clip" else original)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)

        assert torch.equal(_logits(load_pretrained_model("liuhaotian/llava")[1]), _logits(plain))
        assert fetched == [("liuhaotian/llava", False), ("liuhaotian/llava", True), ("openai/clip", False)]

    def test_the_real_one_is_known(
        self, tmp_path: Path, plain: LlavaForConditionalGeneration, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With its weights in the checkpoint, LLaVA-1.5's tower needs neither folder nor network."""
        folder = write_original(tmp_path / "x", plain, tower_inside=True)
        shutil.rmtree(folder / TOWER)
        _edit(folder / "config.json", mm_vision_tower="openai/clip-vit-large-patch14-336", mm_hidden_size=1024)
        key = "model.vision_tower.vision_tower.vision_model.embeddings.class_embedding"

        # Only the shapes do not fit this small model: 1024 wide, 577 positions of 336 / 14 squared and one.
        with pytest.raises(BadInput, match=rf"misshapen .*{key} \(16,\) instead of \(1024,\)") as caught:
            open_checkpoint(folder)
        assert "missing" in str(caught.value)

    @pytest.mark.parametrize(
        ("break_it", "rule"),
        [
            (
                lambda clip: _edit(clip / "config.json", model_type="siglip"),
                "model type clip or clip_vision_model, got",
            ),
            (lambda clip: (clip / "config.json").write_text("{"), "whole and fitting config.json"),
            (lambda clip: (clip / "preprocessor_config.json").unlink(), "image processor"),
            (lambda clip: (clip / "pytorch_model.bin").unlink(), "must have model.safetensors or pytorch_model.bin"),
            (lambda clip: _edit(clip / "preprocessor_config.json", image_processor_type="ViT"), "must be CLIP's"),
        ],
    )
    def test_broken(self, original: Path, break_it: Callable[[Path], object], rule: str) -> None:
        """The message names what is wrong with the tower, and its folder."""
        break_it(original / TOWER)

        with pytest.raises(BadInput, match=rule) as caught:
            open_checkpoint(original)
        assert str(original / TOWER) in str(caught.value)


class TestProjector:
    def test_logits(self, projector: tuple[Path, Path], plain: LlavaForConditionalGeneration) -> None:
        """A projector's checkpoint and its base together are the whole LLaVA, bit for bit."""
        folder, base = projector

        tokenizer, model, _, _ = load_pretrained_model(folder, str(base))

        assert torch.equal(_logits(model), _logits(plain))
        assert tokenizer.get_vocab()["<image>"] == TOKENS

    @pytest.mark.share(4)
    @pytest.mark.parametrize("form", FORMS)
    def test_forms_of_the_base(
        self, projector: tuple[Path, Path], plain: LlavaForConditionalGeneration, form: str, tmp_path: Path
    ) -> None:
        """The base's weights may have any form; the projector's may be safetensors."""
        folder, _ = projector
        base = write_base(tmp_path / "base", plain, form)
        save_file(torch.load(folder / "mm_projector.bin", weights_only=True), folder / "mm_projector.safetensors")
        (folder / "mm_projector.bin").unlink()

        assert torch.equal(_logits(load_pretrained_model(folder, base)[1]), _logits(plain))

    def test_the_base_may_be_fetched(
        self, projector: tuple[Path, Path], plain: LlavaForConditionalGeneration, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A base that the user names by hub id is fetched; the tower, which only the folder names, is not."""
        folder, base = projector
        asked = []

        def fetch(hub_id: str, **options: Any) -> str:
            asked.append(hub_id)
            return str(base)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)

        assert torch.equal(_logits(load_pretrained_model(folder, "lmsys/vicuna")[1]), _logits(plain))
        assert asked == ["lmsys/vicuna"]

    @pytest.mark.parametrize(
        ("break_it", "rule"),
        [
            (
                lambda folder, base: (folder / "mm_projector.bin").unlink(),
                "must have mm_projector.safetensors or mm_pro",
            ),
            (lambda folder, base: (base / WEIGHTS).unlink(), "must have model.safetensors or pytorch_model.bin"),
            (lambda folder, base: _edit(base / "config.json", model_type="gpt2"), "model type llama, got 'gpt2'"),
            (
                lambda folder, base: (folder / "adapter_config.json").write_text("{}"),
                "a LoRA must be whole, got none of non_lora_trainables.bin, adapter_model.safetensors or ad",
            ),
            (
                lambda folder, base: (folder / "non_lora_trainables.bin").write_text("x"),
                "a LoRA must be whole, got none of adapter_config.json",
            ),
            (lambda folder, base: (base / "adapter_config.json").write_text("{}"), "LoRA must have been merged"),
            (lambda folder, base: (base / "tokenizer.json").unlink(), "must have tokenizer.json or tokenizer.model"),
        ],
    )
    def test_broken(self, projector: tuple[Path, Path], break_it: Callable[[Path, Path], object], rule: str) -> None:
        """One line that says what is missing, and where."""
        folder, base = projector
        break_it(folder, base)

        with pytest.raises(BadInput, match=rule):
            open_checkpoint(folder, str(base))

    def test_a_base_is_needed(self, projector: tuple[Path, Path], folder: Path) -> None:
        """A projector alone is no checkpoint; neither does a whole checkpoint in another layout take a base."""
        with pytest.raises(BadInput, match=r"a projector needs a model base, got only mm_projector.bin"):
            open_checkpoint(projector[0])
        for whole in ("tiny", folder):
            with pytest.raises(BadInput, match=r"a model base is for a projector in the original .*, got 'base' for"):
                open_checkpoint(whole, "base")

    def test_a_renamed_key(self, projector: tuple[Path, Path]) -> None:
        """Named as the projector's file does."""
        folder, base = projector
        weights = torch.load(folder / "mm_projector.bin", weights_only=True)
        weights["model.mm_projector.3.bias"] = weights.pop("model.mm_projector.2.bias")
        torch.save(weights, folder / "mm_projector.bin")

        with pytest.raises(
            BadInput, match=r"missing model.mm_projector.2.bias; unexpected model.mm_projector.3.bias in"
        ):
            open_checkpoint(folder, base)


@pytest.mark.share(3)
@pytest.mark.parametrize("tower_inside", [False, True])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("model.layers.1.mlp.up_proj.weight"), "got missing model.layers.1.mlp.up_proj.weight in"),
        (lambda w: w.pop("lm_head.weight"), "got missing lm_head.weight in"),
        (lambda w: w.pop("model.mm_projector.0.bias"), "got missing model.mm_projector.0.bias in"),
        (
            lambda w: w.update({"model.layers.1.mlp.upp_proj.weight": w.pop("model.layers.1.mlp.up_proj.weight")}),
            "got missing model.layers.1.mlp.up_proj.weight; unexpected model.layers.1.mlp.upp_proj.weight in",
        ),
        (lambda w: w.update({"model.image_newline": torch.zeros(32)}), "got unexpected model.image_newline in"),
        (
            lambda w: w.update({"model.norm.weight": torch.zeros(3)}),
            r"got misshapen model.norm.weight \(3,\) instead of \(32,\) in",
        ),
        (
            lambda w: w.update({"lm_head.weight": torch.zeros(ROWS, 32)}),
            rf"got misshapen lm_head.weight \({ROWS}, 32\) instead of \({TOKENS}, 32\) in",
        ),
        (
            lambda w: [w.pop(key) for key in list(w) if key.startswith("model.layers.") and "mlp" in key],
            r"got missing model.layers.0.mlp.down_proj.weight, .* and 7 more in",
        ),
    ],
)
def test_keys_that_are_not_the_models(
    tmp_path: Path,
    plain: LlavaForConditionalGeneration,
    change: Callable[[dict[str, Tensor]], object],
    said: str,
    tower_inside: bool,
) -> None:
    """Missing, unexpected, renamed or misshapen: named as the file does, before any weight is read."""
    folder = write_original(tmp_path / "x", plain, tower_inside=tower_inside)
    _change(folder, change)

    with pytest.raises(BadInput, match=f"must hold exactly the model's keys, {said}") as caught:
        open_checkpoint(folder)
    assert str(caught.value).endswith(f"in '{folder}'")


@pytest.mark.parametrize("inside", [False, True])
def test_a_renamed_key_of_the_tower(tmp_path: Path, plain: LlavaForConditionalGeneration, inside: bool) -> None:
    """Named as the file does that holds it, LLaVA's own or CLIP's."""
    folder = write_original(tmp_path / "x", plain, "bin", tower_inside=inside)
    file = folder / "pytorch_model.bin" if inside else folder / TOWER / "pytorch_model.bin"
    prefix = "model.vision_tower.vision_tower." if inside else ""
    weights = torch.load(file, weights_only=True)
    good = f"{prefix}vision_model.pre_layrnorm.weight"
    weights[good.replace("layr", "layer")] = weights.pop(good)
    torch.save(weights, file)

    with pytest.raises(BadInput, match=f"missing {good}; unexpected {good.replace('layr', 'layer')} in"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        *(({key: ...}, f"must say {key}, got none") for key in
          ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
           "max_position_embeddings", "rms_norm_eps", "mm_vision_select_layer")),
        ({"vocab_size": "many"}, "vocab_size must be a whole number above 0, got 'many'"),
        ({"vocab_size": 200}, "at most the model's 200 tokens, got 300"),
        ({"hidden_size": "wide"}, "config.json"),
        ({"model_type": "llava_mpt"}, "model type llava or llava_llama, got 'llava_mpt'"),
        ({"mm_vision_tower": 3}, "mm_vision_tower must be a name, got 3"),
        ({"mm_vision_tower": ""}, "mm_vision_tower must be a name, got ''"),
        ({"mm_projector_type": "linear"}, "mm_projector_type must be mlp2x_gelu, got 'linear'"),
        ({"mm_projector_type": ...}, "mm_projector_type must be mlp2x_gelu, got None"),
        ({"mm_vision_select_layer": 9}, r"mm_vision_select_layer must be in -4\.\.3, got 9"),
        ({"mm_vision_select_layer": [-2]}, r"mm_vision_select_layer must be a whole number, got \[-2\]"),
        ({"mm_vision_select_feature": "cls"}, "mm_vision_select_feature must be patch or cls_patch, got 'cls'"),
        ({"mm_hidden_size": 1024}, "mm_hidden_size must be the vision tower's 16, got 1024"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end must be false, got True"),
        ({"image_aspect_ratio": "anyres"}, "image_aspect_ratio must be pad or square, got 'anyres'"),
        ({"mm_patch_merge_type": "spatial_unpad"}, "mm_patch_merge_type must be flat, got 'spatial_unpad'"),
        ({"torch_dtype": "int8"}, "torch_dtype must be one of float32, float16, bfloat16, got 'int8'"),
    ],
)  # fmt: skip
def test_configs_that_are_not_ours(original: Path, changes: dict[str, Any], rule: str) -> None:
    """A setting that we can't know or can't do is refused with its key, not guessed."""
    _edit(original / "config.json", **changes)

    with pytest.raises(BadInput, match=rule) as caught:
        open_checkpoint(original)
    assert str(original) in str(caught.value)


@pytest.mark.share(4)
@pytest.mark.parametrize("how", ["zip", "legacy", "bare"])
@pytest.mark.parametrize("victim", ["pytorch_model.bin", f"{TOWER}/pytorch_model.bin", "mm_projector.bin"])
def test_no_pickle_is_run(tmp_path: Path, plain: LlavaForConditionalGeneration, victim: str, how: str) -> None:
    """Planted in the weights, in CLIP's or in a projector: refused with the file's name, and nothing ran."""
    base = None
    if victim == "mm_projector.bin":
        folder, base = write_projector(tmp_path / "x", plain), write_base(tmp_path / "base", plain)
    else:
        folder = write_original(tmp_path / "x", plain, "bin")
    plant(folder / victim, tmp_path / "ran", how)

    with pytest.raises(BadInput, match=rf"got '{Path(victim).name}' in .*no pickle of tensors only"):
        load_pretrained_model(folder, base)

    assert not (tmp_path / "ran").exists()


def test_an_index_that_leads_outside(tmp_path: Path, plain: LlavaForConditionalGeneration) -> None:
    """A shard is a file of the folder by its name, even where the other file is there and fits."""
    folder = write_original(tmp_path / "x", plain, "sharded bin")
    shard = "pytorch_model-00002-of-00003.bin"
    shutil.move(folder / shard, tmp_path / shard)
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(index.read_text().replace(shard, f"../{shard}"))

    with pytest.raises(BadInput, match=f"an index must name files of its folder, got '../{shard}'"):
        open_checkpoint(folder)


class TestTokenizer:
    WORDS = ("▁A", "▁chat", "▁USER", ":", "\n", "▁What", "▁is")

    @pytest.fixture
    def sentencepiece(self, original: Path) -> Path:
        """A checkpoint with the original's own kind of tokenizer, and only that."""
        for file in original.glob("tokenizer*"):
            file.unlink()
        (original / "tokenizer.model").write_bytes(sentencepiece_model(list(self.WORDS)))
        return original

    @pytest.mark.parametrize("with_config", [True, False])
    def test_sentencepiece(self, sentencepiece: Path, with_config: bool) -> None:
        """tokenizer.model: prompts start with the begin token, and <image> is one token wherever it stands."""
        pytest.importorskip("sentencepiece")
        pytest.importorskip("google.protobuf")
        if with_config:
            begin = {"__type": "AddedToken", "content": "<s>", "lstrip": False, "normalized": False, "rstrip": False}
            settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False}
            write_json(sentencepiece / "tokenizer_config.json", settings | {"bos_token": begin, "pad_token": None})

        tokenizer = open_checkpoint(sentencepiece).tokenizer

        ids = tokenizer("A chat USER: <image>\n What is ö").input_ids
        image = tokenizer.get_vocab()["<image>"]
        assert ids[0] == 1
        assert ids.count(image) == 1
        assert image == len(tokenizer) - 2 == tokenizer.pad_token_id - 1
        assert tokenizer.decode(ids, skip_special_tokens=True).split() == ["A", "chat", "USER:", "What", "is", "ö"]
        whole = [token for token in tokenizer.convert_ids_to_tokens(ids) if token in self.WORDS]
        assert whole == ["▁A", "▁chat", "▁USER", ":", "\n", "▁What", "▁is"]

    def test_sentencepiece_needs_its_packages(self, sentencepiece: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without them the message says which they are; transformers would speak of tiktoken."""
        monkeypatch.setattr("llava.original.is_sentencepiece_available", lambda: False)

        with pytest.raises(BadInput, match=r"tokenizer\.model needs the packages sentencepiece and protobuf"):
            open_checkpoint(sentencepiece)

    def test_none(self, original: Path) -> None:
        """No tokenizer is not an empty one."""
        (original / "tokenizer.json").unlink()

        with pytest.raises(BadInput, match=r"must have tokenizer\.json or tokenizer\.model, got neither"):
            open_checkpoint(original)


def test_loading_is_silent(original: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """No progress bars, no reports of other libraries."""
    load_pretrained_model(original)

    assert capfd.readouterr() == ("", "")


def test_code_in_a_checkpoint_is_never_run(original: Path, tmp_path: Path) -> None:
    """Classes that the folder brings are ignored, without a question and unexecuted."""
    (original / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass")
    _edit(original / "config.json", auto_map={"AutoConfig": "evil.Evil"})
    _edit(original / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None]})
    _edit(original / TOWER / "preprocessor_config.json", auto_map={"AutoImageProcessor": "evil.Evil"})

    load_pretrained_model(original)

    assert not (tmp_path / "ran").exists()
