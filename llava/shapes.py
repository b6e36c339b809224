"""Our own models: their shapes, and the tokenizer and image processor that go with them."""

from __future__ import annotations

from dataclasses import dataclass

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, LlamaConfig, PreTrainedTokenizerFast

from himap import HimapLlavaConfig
from llava import sample_questions
from llava.conversation import CONVERSATIONS, IMAGE_TOKEN

CONTEXT = 4096  # tokens, as LLaVA-1.5
_SPECIAL = ("<unk>", "<s>", "</s>", IMAGE_TOKEN, "<pad>")  # ids 0, 1, ...
_VOCABULARY = 1024  # tokens of the tokenizer, at most


@dataclass(frozen=True)
class Transformer:
    """The sizes of a decoder or of a vision tower."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int


@dataclass(frozen=True)
class Shape:
    """The sizes of a LLaVA. `image_size` and `patch_size` in pixels; `vocab_size` None: as many as the tokenizer has.

    `initializer_range` is the standard deviation of its random weights.
    """

    decoder: Transformer
    tower: Transformer
    image_size: int
    patch_size: int
    vocab_size: int | None = None
    initializer_range: float = 0.02


_CLIP_LARGE = Transformer(1024, 4096, 24, 16)
SHAPES = {
    "tiny": Shape(
        Transformer(128, 256, 4, 4),
        Transformer(64, 128, 3, 4),
        image_size=112,  # 8 x 8 = 64 image tokens
        patch_size=14,
        # Far above a real model's 0.02: without training, it is what makes attention prefer some tokens to others.
        initializer_range=0.2,
    ),
    # LLaVA-1.5 as llava-hf publishes it: 24 x 24 = 576 image tokens, 32002 tokens in 32064 rows.
    "7b": Shape(Transformer(4096, 11008, 32, 32), _CLIP_LARGE, image_size=336, patch_size=14, vocab_size=32064),
    "13b": Shape(Transformer(5120, 13824, 40, 40), _CLIP_LARGE, image_size=336, patch_size=14, vocab_size=32064),
}


def llava_config(shape: Shape, tokenizer: PreTrainedTokenizerFast) -> HimapLlavaConfig:
    """The config of that shape, with the ids of `our_tokenizer`."""
    ids = {token: index for index, token in enumerate(_SPECIAL)}
    decoder = shape.decoder
    return HimapLlavaConfig(
        vision_config=vision_config(shape),
        text_config=LlamaConfig(
            **vars(decoder),
            vocab_size=shape.vocab_size or len(tokenizer),
            rms_norm_eps=1e-5,
            max_position_embeddings=CONTEXT,
            bos_token_id=ids["<s>"],
            eos_token_id=ids["</s>"],
            pad_token_id=ids["<pad>"],
            initializer_range=shape.initializer_range,
        ),
        image_token_index=ids[IMAGE_TOKEN],
        image_seq_length=(shape.image_size // shape.patch_size) ** 2,
    )


def vision_config(shape: Shape) -> CLIPVisionConfig:
    """The config of its vision tower."""
    return CLIPVisionConfig(
        **vars(shape.tower),
        image_size=shape.image_size,
        patch_size=shape.patch_size,
        projection_dim=768,  # CLIP's own; nothing of LLaVA's has that size
    )


def clip_processor(image_size: int) -> CLIPImageProcessorPil:
    """CLIP's image processor: the short side to `image_size` pixels, then the middle of the picture."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
    )


def our_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer (any text comes back as it went in), with LLaMA's special tokens. Always the same."""
    unk, bos, eos, image, pad = _SPECIAL
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [CONVERSATIONS["vicuna_v1"].system] + [text for text, _ in sample_questions.TEXTS]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, _SPECIAL.index(bos))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=unk,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        extra_special_tokens={"image_token": image},
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
