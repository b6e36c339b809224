"""LLaVA with HiMAP inside: plain LLaVA while off, the image found by itself while on, checkpoints taken whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
)

from himap import HimapLlavaConfig, HimapLlavaForConditionalGeneration
from himap.settings import FLAGS
from tests.himap.models import (
    IMAGE_TOKEN,
    TEXT,
    VISION,
    custom_on,
    fastv_on,
    himap_on,
    llava_config,
    llava_inputs,
    plain_llava,
    random_llava,
)

HIMAP = {"attn_txt_layer": 1, "attn_txt_rank": 8, "attn_img_layer": 2, "attn_img_rank": 2}  # of 16 image tokens
FASTV = {"agg_layer": 1, "attention_rank": 8}
CUSTOM = {"kept_tokens": 4, "agg_layer": 1}
DROP = CUSTOM | {"drop": True}
SIZES = [3 + 16 + 6, 3 + 8 + 6, 3 + 2 + 6]


def switch(model: HimapLlavaForConditionalGeneration, mode: str) -> None:
    if mode == "himap":
        himap_on(model.config, **HIMAP)
    elif mode == "custom":
        custom_on(model.config, **CUSTOM)


def answer(model: Any, inputs: dict[str, torch.Tensor], tokens: int, **kwargs: Any) -> Any:
    """Greedy ids. An image token among them would be one too many in the next forward without a cache."""
    return model.generate(**inputs, max_new_tokens=tokens, do_sample=False, suppress_tokens=[IMAGE_TOKEN], **kwargs)


modes = pytest.mark.parametrize("mode", ["himap", "custom"])


class TestArgumentsThatCountTokens:
    """`labels` and a tensor `logits_to_keep` name places in the whole prompt, of which a mode may remove some."""

    @pytest.mark.parametrize("argument", ["labels", "logits_to_keep"])
    @pytest.mark.parametrize("switch_on", [himap_on, fastv_on, custom_on])
    def test_refused_where_tokens_are_removed(
        self, llava: HimapLlavaForConditionalGeneration, switch_on: Any, argument: str
    ) -> None:
        """One error names the argument; the next forward is as if it had never been."""
        inputs = llava_inputs()
        switch_on(llava.config, **(HIMAP if switch_on is himap_on else FASTV if switch_on is fastv_on else DROP))
        expected = llava(**inputs).logits
        value = inputs["input_ids"] if argument == "labels" else torch.tensor([0, 24])
        with pytest.raises(ValueError, match=f"must keep its length where (a tensor )?{argument} counts its tokens"):
            llava(**inputs, **{argument: value})
        assert torch.equal(llava(**inputs).logits, expected)

    def test_accepted_where_nothing_is_removed(self, llava: HimapLlavaForConditionalGeneration) -> None:
        """With every mode off, in a prompt of text, and in custom selection that keeps the length."""
        text, image = llava_inputs(images=0), llava_inputs()
        plain = plain_llava(llava)
        assert torch.equal(
            llava(**image, labels=image["input_ids"]).loss, plain(**image, labels=image["input_ids"]).loss
        )
        himap_on(llava.config, **HIMAP)
        assert torch.equal(llava(**text, labels=text["input_ids"]).loss, plain(**text, labels=text["input_ids"]).loss)
        assert llava(**image, logits_to_keep=1).logits.shape[1] == 1
        llava.config.use_hmap_v = False
        custom_on(llava.config, **CUSTOM)
        assert llava(**image, labels=image["input_ids"]).loss > 0
        assert llava(**image, logits_to_keep=torch.tensor([0, 24])).logits.shape[1] == 2


class TestBaseline:
    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    @pytest.mark.parametrize("images", [0, 1])
    @pytest.mark.parametrize("use_cache", [False, True])
    def test_bit_for_bit(
        self, llava: HimapLlavaForConditionalGeneration, attention: str, images: int, use_cache: bool
    ) -> None:
        """Logits and generated tokens are plain LLaVA's to the last bit, with an image and without."""
        plain, inputs = plain_llava(llava), llava_inputs(images=images)
        for model in (llava, plain):
            model.set_attn_implementation(attention)

        ours, theirs = (model(**inputs, use_cache=use_cache) for model in (llava, plain))
        answers = [answer(model, inputs, 5, use_cache=use_cache) for model in (llava, plain)]

        assert torch.equal(ours.logits, theirs.logits)
        assert torch.equal(*answers)

    def test_same_keys(self, llava: HimapLlavaForConditionalGeneration) -> None:
        """The weights have plain LLaVA's names, in its order, and are drawn as its are from one seed."""
        torch.manual_seed(0)
        config = LlavaConfig(vision_config=VISION, text_config=TEXT, image_token_index=IMAGE_TOKEN)
        plain = LlavaForConditionalGeneration(config).state_dict()

        assert list(llava.state_dict()) == list(plain)
        assert all(torch.equal(llava.state_dict()[key], plain[key]) for key in plain)

    def test_no_mask_is_made(self, llava: HimapLlavaForConditionalGeneration, monkeypatch: pytest.MonkeyPatch) -> None:
        """With every mode off the decoder is handed what plain LLaVA hands it: no image mask, not one byte more."""
        handed: list[set[str]] = []
        forward = type(llava.model.language_model).forward

        def spy(self: Any, **kwargs: Any) -> Any:
            handed.append({name for name, value in kwargs.items() if value is not None})
            return forward(self, **kwargs)

        monkeypatch.setattr(type(llava.model.language_model), "forward", spy)

        llava(**llava_inputs(), use_cache=False)
        switch(llava, "himap")
        llava(**llava_inputs(), use_cache=False)

        assert handed[0] == {"attention_mask", "inputs_embeds", "use_cache"}
        assert handed[1] == handed[0] | {"image_mask"}

    def test_the_original_fix_works_literally(self, llava: HimapLlavaForConditionalGeneration) -> None:
        """`model.config.use_hmap_v = False; model.model.reset_hmapv()` brings plain LLaVA back at once."""
        model, inputs = llava, llava_inputs()
        dense = model(**inputs, use_cache=False).logits
        himap_on(model.config, **HIMAP)
        pruned = model(**inputs, use_cache=False).logits
        assert model.model.language_model.kept is not None

        model.config.use_hmap_v = False
        model.model.reset_hmapv()

        assert model.model.language_model.kept is None
        assert pruned.shape[1] == SIZES[-1]
        assert torch.equal(model(**inputs, use_cache=False).logits, dense)

    def test_custom_selection_resets_likewise(self, llava: HimapLlavaForConditionalGeneration) -> None:
        """The same two lines for custom selection."""
        model, inputs = llava, llava_inputs()
        dense = model(**inputs, use_cache=False).logits
        custom_on(model.config, **CUSTOM)
        assert not torch.equal(model(**inputs, use_cache=False).logits[:, -1], dense[:, -1])

        model.config.use_custom_selection = False
        model.model.reset_custom_selection()

        assert model.model.language_model.kept is None
        assert torch.equal(model(**inputs, use_cache=False).logits, dense)

    def test_the_decoder_runs_the_base_class(
        self, llava: HimapLlavaForConditionalGeneration, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Off, LlamaModel.forward is entered once per forward; on, with an image, never."""
        entered: list[None] = []
        forward = LlamaModel.forward
        monkeypatch.setattr(LlamaModel, "forward", lambda self, **k: entered.append(None) or forward(self, **k))

        llava(**llava_inputs(), use_cache=False)
        assert len(entered) == 1
        switch(llava, "himap")
        llava(**llava_inputs(), use_cache=False)
        assert len(entered) == 1


class TestPruning:
    def test_the_image_is_found(self, llava: HimapLlavaForConditionalGeneration) -> None:
        """No lengths need be set: image tokens are where `input_ids` has them. Both stages shorten the sequence."""
        switch(llava, "himap")
        llava.set_attn_implementation("eager")

        output = llava(**llava_inputs(), use_cache=False, output_attentions=True)

        assert [one.shape[-1] for one in output.attentions] == [SIZES[0], SIZES[1], SIZES[2], SIZES[2]]
        kept = llava.model.language_model.kept
        assert (kept.txt[0].shape, kept.img[0].shape) == ((8,), (2,))
        assert set(kept.img[0].tolist()) <= set(kept.txt[0].tolist()) <= set(range(16))

    @modes
    def test_lengths_are_checked(self, llava: HimapLlavaForConditionalGeneration, mode: str) -> None:
        """Configured lengths that the prompt contradicts are refused; right ones change nothing."""
        switch(llava, mode)
        expected = llava(**llava_inputs(), use_cache=False).logits
        llava.config.hmap_v_sys_length = llava.config.custom_sys_length = 3
        llava.config.hmap_v_img_length = llava.config.custom_image_token_length = 16
        assert torch.equal(llava(**llava_inputs(), use_cache=False).logits, expected)
        llava.config.hmap_v_sys_length = llava.config.custom_sys_length = 35
        with pytest.raises(ValueError, match="configured system length is 35, the prompt's is 3"):
            llava(**llava_inputs(), use_cache=False)

    @modes
    @pytest.mark.parametrize("use_cache", [False, True])
    def test_text_only_is_dense(self, llava: HimapLlavaForConditionalGeneration, mode: str, use_cache: bool) -> None:
        """A prompt with no image is answered as by the baseline, bit for bit, with a cache too."""
        inputs = llava_inputs(images=0)
        logits = llava(**inputs, use_cache=use_cache).logits
        answered = answer(llava, inputs, 4, use_cache=use_cache)
        switch(llava, mode)

        assert torch.equal(llava(**inputs, use_cache=use_cache).logits, logits)
        assert torch.equal(answer(llava, inputs, 4, use_cache=use_cache), answered)

    def test_generate_is_a_forward_per_token(self, llava: HimapLlavaForConditionalGeneration) -> None:
        """Without a cache `generate` scores the image anew at each step, as repeated forwards do."""
        switch(llava, "himap")
        inputs = llava_inputs()

        answered = answer(llava, inputs, 5, use_cache=False)

        ids = inputs["input_ids"]
        for _ in range(5):
            logits = llava(input_ids=ids, pixel_values=inputs["pixel_values"], use_cache=False).logits
            logits[..., IMAGE_TOKEN] = float("-inf")
            ids = torch.cat([ids, logits[:, -1:].argmax(dim=-1)], dim=1)
        assert answered.tolist() == ids.tolist()

    def test_custom_selection_with_a_cache(self, llava: HimapLlavaForConditionalGeneration) -> None:
        """Merging once at prefill gives the tokens of merging at every step."""
        switch(llava, "custom")
        inputs = llava_inputs()

        cached, anew = (answer(llava, inputs, 6, use_cache=use_cache) for use_cache in (True, False))

        assert cached.tolist() == anew.tolist()

    def test_one_first_index_per_generate(self, llava: HimapLlavaForConditionalGeneration) -> None:
        """Steps without a cache share one drawn first index: exactly one number is drawn per answer."""
        switch(llava, "custom")
        llava.config.custom_selection_method = "fps"
        torch.manual_seed(4)
        torch.randint(0, 16, (1,))
        state = torch.get_rng_state()
        torch.manual_seed(4)

        answer(llava, llava_inputs(), 5, use_cache=False)

        assert torch.equal(torch.get_rng_state(), state)

    def test_attentions_can_be_kept(self, llava: HimapLlavaForConditionalGeneration) -> None:
        """`generate(output_attentions=True)` gives each step's maps, one per layer, while pruning."""
        switch(llava, "himap")
        llava.set_attn_implementation("eager")

        output = answer(
            llava,
            llava_inputs(),
            3,
            use_cache=False,
            output_attentions=True,
            return_dict_in_generate=True,
        )

        sizes = [[one.shape[-1] for one in step] for step in output.attentions]
        assert sizes == [[SIZES[0] + n, SIZES[1] + n, SIZES[2] + n, SIZES[2] + n] for n in range(3)]

    @modes
    @pytest.mark.parametrize("between", [[], [5]], ids=["side by side", "with text between"])
    def test_two_images_are_refused(
        self, llava: HimapLlavaForConditionalGeneration, mode: str, between: list[int]
    ) -> None:
        """A prompt with two images, which side by side look like one."""
        switch(llava, mode)
        inputs = llava_inputs(images=2)
        ids = inputs["input_ids"][0].tolist()
        inputs["input_ids"] = torch.tensor([[*ids[:19], *between, *ids[19:]]])
        del inputs["attention_mask"]
        with pytest.raises(ValueError, match="must have one image, got 2 for 1 with image tokens"):
            llava(**inputs, use_cache=False)

    @modes
    def test_an_image_on_a_cache_with_text_is_refused(
        self, llava: HimapLlavaForConditionalGeneration, mode: str
    ) -> None:
        """An image whose system prompt is in the cache already: its choice would not know it."""
        switch(llava, mode)
        inputs = llava_inputs()
        cache = llava(inputs["input_ids"][:, :3]).past_key_values
        with pytest.raises(ValueError, match="must come with the first forward on a cache, got one with 3 tokens"):
            llava(inputs["input_ids"][:, 3:], pixel_values=inputs["pixel_values"], past_key_values=cache)

    @modes
    def test_a_written_image_token_is_a_word(self, llava: HimapLlavaForConditionalGeneration, mode: str) -> None:
        """After the prefill an image token without pixels is text: untrained models do write it."""
        switch(llava, mode)
        cache = llava(**llava_inputs()).past_key_values
        one = llava(torch.tensor([[IMAGE_TOKEN]]), past_key_values=cache)
        several = llava(torch.tensor([[4, IMAGE_TOKEN, IMAGE_TOKEN, 6]]), past_key_values=cache)
        assert (one.logits.shape[1], several.logits.shape[1]) == (1, 4)


class TestConfig:
    @pytest.mark.parametrize("flag", FLAGS)
    def test_flags_are_forwarded(self, flag: str) -> None:
        """A flag set on either config is read from both: there is only one place it lives."""
        config = llava_config()
        assert getattr(config, flag) is None

        setattr(config, flag, 7)
        assert getattr(config.text_config, flag) == 7
        setattr(config.text_config, flag, 9)
        assert getattr(config, flag) == 9

    def test_flags_given_to_the_constructor(self) -> None:
        """Flags given when the config is made reach the decoder's config, and no second copy is written."""
        config = llava_config(use_hmap_v=True, hmap_v_attn_txt_layer=1)

        assert config.text_config.use_hmap_v is True
        assert config.text_config.hmap_v_attn_txt_layer == 1
        written = config.to_dict()
        assert "use_hmap_v" not in written
        assert written["text_config"]["use_hmap_v"] is True

    def test_flags_survive_a_round_trip(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Flags are saved with the model and act in the loaded one, which says so; a flag given at loading wins."""
        model = random_llava(use_hmap_v=True, **{f"hmap_v_{name}": value for name, value in HIMAP.items()})
        expected = model(**llava_inputs(), use_cache=False).logits
        model.save_pretrained(tmp_path)

        loaded = HimapLlavaForConditionalGeneration.from_pretrained(tmp_path)
        (said,) = [record.message for record in caplog.records if record.name.startswith("himap")]
        assert said == "the checkpoint was saved with use_hmap_v on: image tokens are selected until it is off"
        caplog.clear()
        switched_off = HimapLlavaForConditionalGeneration.from_pretrained(tmp_path, use_hmap_v=False)

        assert torch.equal(loaded(**llava_inputs(), use_cache=False).logits, expected)
        assert switched_off(**llava_inputs(), use_cache=False).logits.shape[1] == SIZES[0]
        assert not [record for record in caplog.records if record.name.startswith("himap")]

    def test_flags_at_the_top_of_a_file(self, llava: HimapLlavaForConditionalGeneration, tmp_path: Path) -> None:
        """A config.json with the flags beside `text_config`, as the original has them, is read alike."""
        llava.config.save_pretrained(tmp_path)
        file = tmp_path / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"use_hmap_v": True, "hmap_v_attn_txt_rank": 5}))

        config = HimapLlavaConfig.from_pretrained(tmp_path)

        assert config.text_config.use_hmap_v is True
        assert config.text_config.hmap_v_attn_txt_rank == 5

    def test_a_plain_config_is_refused(self) -> None:
        """Flags set on a plain LlavaConfig would never reach the decoder, so it is not taken."""
        with pytest.raises(ValueError, match="config must be a HimapLlavaConfig, got LlavaConfig"):
            HimapLlavaForConditionalGeneration(LlavaConfig(vision_config=VISION, text_config=TEXT))

    def test_another_decoder_is_refused(self) -> None:
        """LLaVA around a decoder that is no LLaMA is refused, not run as one."""
        text = MistralConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1)
        with pytest.raises(ValueError, match="decoder must be a LLaMA, got model type 'mistral'"):
            HimapLlavaForConditionalGeneration(
                HimapLlavaConfig(vision_config=CLIPVisionConfig(**VISION), text_config=text)
            )

    def test_the_decoder_reads_the_config_one_sees(self, llava: HimapLlavaForConditionalGeneration) -> None:
        """`model.config.text_config` is the decoder's config, not a copy."""
        assert llava.model.language_model.config is llava.config.text_config
        assert isinstance(llava.config.text_config, LlamaConfig)

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_dtype_of_the_decoder(self, dtype: str) -> None:
        """A decoder whose config names a dtype is built in it, as plain LLaVA's is."""
        text = TEXT | {"dtype": dtype}

        ours = HimapLlavaForConditionalGeneration(HimapLlavaConfig(vision_config=dict(VISION), text_config=dict(text)))
        plain = LlavaForConditionalGeneration(LlavaConfig(vision_config=dict(VISION), text_config=dict(text)))

        kinds = {name: tensor.dtype for name, tensor in ours.state_dict().items()}
        assert kinds == {name: tensor.dtype for name, tensor in plain.state_dict().items()}
        assert getattr(torch, dtype) in kinds.values()


class TestCheckpoints:
    @pytest.fixture
    def folder(self, llava: HimapLlavaForConditionalGeneration, tmp_path: Path) -> Path:
        llava.save_pretrained(tmp_path)
        return tmp_path

    @staticmethod
    def rewrite(folder: Path, change: Any) -> None:
        weights = load_file(folder / "model.safetensors")
        save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})

    def test_to_plain_transformers_and_back(
        self, llava: HimapLlavaForConditionalGeneration, folder: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """Plain transformers loads what we save, and we load what it saves: the same logits throughout."""
        expected = llava(**llava_inputs()).logits

        plain, info = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
        again = tmp_path_factory.mktemp("plain")
        plain.save_pretrained(again)
        loaded = HimapLlavaForConditionalGeneration.from_pretrained(again)

        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert torch.equal(plain(**llava_inputs()).logits, expected)
        assert torch.equal(loaded(**llava_inputs()).logits, expected)

    def test_file_names_are_plain_llavas(
        self, llava: HimapLlavaForConditionalGeneration, folder: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """The files we write name their keys as plain LLaVA's do, whether our model was built or loaded."""
        folders = {"built": folder}
        for name, model in (
            ("plain", plain_llava(llava)),
            ("loaded", HimapLlavaForConditionalGeneration.from_pretrained(folder)),
        ):
            folders[name] = tmp_path_factory.mktemp(name)
            model.save_pretrained(folders[name])

        built, plain, loaded = (set(load_file(folders[name] / "model.safetensors")) for name in folders)
        assert built == plain == loaded

    @pytest.mark.parametrize("names", ["of llava-hf", "of the modules"])
    def test_names_of_any_age(self, llava: HimapLlavaForConditionalGeneration, folder: Path, names: str) -> None:
        """Checkpoints named as llava-hf's are, or as the modules are, load whole."""

        def named(key: str) -> str:
            if names == "of the modules":
                return key
            if key == "lm_head.weight":
                return "language_model.lm_head.weight"
            key = key.removeprefix("model.").replace("language_model.", "language_model.model.")
            return key.replace("vision_tower.", "vision_tower.vision_model.")

        save_file(
            {named(key): tensor.clone() for key, tensor in llava.state_dict().items()},
            folder / "model.safetensors",
            metadata={"format": "pt"},
        )
        if names == "of llava-hf":  # spelt out, as they stand in llava-hf/llava-1.5-7b-hf
            assert load_file(folder / "model.safetensors").keys() > {
                "language_model.lm_head.weight",
                "language_model.model.layers.0.self_attn.q_proj.weight",
                "multi_modal_projector.linear_1.weight",
                "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight",
            }

        loaded = HimapLlavaForConditionalGeneration.from_pretrained(folder)

        assert torch.equal(loaded(**llava_inputs()).logits, llava(**llava_inputs()).logits)

    KEY = "model.language_model.layers.1.mlp.up_proj.weight"
    IN_FILE = "language_model.model.layers.1.mlp.up_proj.weight"

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda w: {k: v for k, v in w.items() if k != TestCheckpoints.IN_FILE}, f"got missing {KEY}$"),
            (lambda w: w | {"language_model.model.extra": torch.ones(2)}, "got unexpected model.language_model.extra$"),
            (
                lambda w: {k.replace("layers.1.mlp.up", "layers.1.mlp.upp"): v for k, v in w.items()},
                f"got missing {KEY}; unexpected {KEY.replace('up_', 'upp_')}$",
            ),
            (lambda w: w | {TestCheckpoints.IN_FILE: torch.ones(3, 3)}, f"got misshapen {KEY}$"),
        ],
        ids=["missing", "unexpected", "renamed", "misshapen"],
    )
    def test_incomplete_or_foreign(self, folder: Path, change: Any, said: str) -> None:
        """A checkpoint with a key too few, too many, renamed or misshapen is refused, naming the key."""
        self.rewrite(folder, change)
        with pytest.raises(ValueError, match=f"must hold exactly the model's keys, {said}"):
            HimapLlavaForConditionalGeneration.from_pretrained(folder)

    def test_tied_embeddings(self, tmp_path: Path) -> None:
        """A head tied to the embeddings is not saved, and not missed."""
        config = HimapLlavaConfig(
            vision_config=dict(VISION),
            text_config=TEXT | {"tie_word_embeddings": True},
            image_token_index=IMAGE_TOKEN,
            tie_word_embeddings=True,
        )
        model = HimapLlavaForConditionalGeneration(config).eval()
        model.save_pretrained(tmp_path)

        loaded = HimapLlavaForConditionalGeneration.from_pretrained(tmp_path)

        assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
        assert torch.equal(loaded(**llava_inputs()).logits, model(**llava_inputs()).logits)

    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    def test_attention_and_dtype_as_asked(self, folder: Path, attention: str) -> None:
        """`attn_implementation` and `dtype` reach the decoder."""
        loaded = HimapLlavaForConditionalGeneration.from_pretrained(
            folder, attn_implementation=attention, dtype=torch.bfloat16
        )

        assert loaded.model.language_model.config._attn_implementation == attention
        assert {tensor.dtype for tensor in loaded.model.language_model.state_dict().values()} == {torch.bfloat16}
