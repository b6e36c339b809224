"""Random models and prompts against the plain reference, which is itself checked against the golden vectors."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, seed, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from himap import HimapLlamaForCausalLM
from tests.himap.models import LOGITS, SCORES, Prompt, custom_on, fastv_on, golden, golden_llama, himap_on
from tests.himap.reference import Answer, Array, Custom, Fastv, Himap, Reference

VOCAB = 40
CLOSE = 2e-5  # of the largest logit: float32 against float64
GAP = 5e-5  # a choice by less may fall otherwise in float32
ROUND = 10  # cases drawn from one seed; hypothesis would make later ones by altering earlier ones a little
Method = Himap | Fastv | Custom
CASES = {
    "himap": 70,
    "fastv": 30,
    "custom": 70,
    "himap scored anew": 60,
    "himap cached": 60,
    "fastv cached": 30,
    "custom cached": 60,
    "himap batch": 60,
    "fastv batch": 30,
    "custom batch": 50,
    "himap batch cached": 60,
    "fastv batch cached": 30,
    "custom batch cached": 60,
}
"""How many random cases each property is tried on with --full; a tenth on every push."""


def tried_on(
    cases: st.SearchStrategy[Case], name: str
) -> Callable[[Callable[[Case], None]], Callable[[pytest.Config], None]]:
    """Make a property of one case a test of CASES[name] different ones, or a fifth of them, the same at each run."""

    def decorate(holds: Callable[[Case], None]) -> Callable[[pytest.Config], None]:
        held: set[Case] = set()

        @settings(
            max_examples=ROUND,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],  # a matter of how busy the machine is
        )
        @given(cases)
        def search(case: Case) -> None:
            holds(case)
            held.add(case)

        def test(pytestconfig: pytest.Config) -> None:
            held.clear()
            numbers = count()
            wanted = CASES[name] // (1 if pytestconfig.getoption("--full", default=False) else 10)
            while len(held) < wanted:  # what came twice or was assumed away does not count
                seed(next(numbers))(search)()

        test.__doc__ = holds.__doc__
        return test

    return decorate


@dataclass(frozen=True)
class Model:
    """A small LLaMA of any shape, with weights drawn by `seed`."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    attention: str
    biases: bool
    rope_theta: float
    seed: int

    def config(self) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=self.hidden,
            intermediate_size=2 * self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim,
            attention_bias=self.biases,
            mlp_bias=self.biases,
            rope_parameters={"rope_type": "default", "rope_theta": self.rope_theta},
            attn_implementation=self.attention,
        )

    @cached_property
    def ours(self) -> HimapLlamaForCausalLM:
        model: HimapLlamaForCausalLM = HimapLlamaForCausalLM(self.config()).eval()
        generator = torch.Generator().manual_seed(self.seed)
        for name, weight in model.named_parameters():
            weight.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.2, generator=generator)
        return model

    @cached_property
    def reference(self) -> Reference:
        return Reference(self.ours.state_dict(), self.ours.config)

    def switch_on(self, method: Method, prompt: Prompt | None) -> None:
        """Set the flags; `prompt`, where given, says the lengths."""
        if isinstance(method, Himap):
            himap_on(self.ours.config, prompt, **{f"attn_{name}": value for name, value in asdict(method).items()})
        elif isinstance(method, Fastv):
            fastv_on(self.ours.config, prompt, **asdict(method))
        else:
            custom_on(self.ours.config, prompt, **asdict(method))


@dataclass(frozen=True)
class Row:
    """A prompt: system tokens, an image (or none), text. No token comes twice."""

    sys: int
    img: int
    text: int
    seed: int

    @property
    def ids(self) -> list[int]:
        order = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(self.seed))
        return [int(token) for token in order[: self.sys + self.img + self.text]]


@dataclass(frozen=True)
class Case:
    """One prompt, or the rows of a batch, and the turns that follow: in each, every row says one token or more."""

    model: Model
    method: Method
    rows: tuple[Row, ...]
    turns: tuple[tuple[tuple[int, ...], ...], ...] = ()
    use_cache: bool = False
    cropped: int = 0  # tokens that are taken back before the last turn
    padding: int = 0  # of the longest row
    masked: bool = True  # an image mask is given, not configured lengths
    embedded: bool = True  # embeddings are given, not ids
    positioned: bool = False  # position ids are given


class Tape:
    """The tokens of each row of a batch so far, None for padding; inputs made of it, and what they are to give."""

    def __init__(self, case: Case) -> None:
        self.case, self.ours = case, case.model.ours
        self.new = max(len(row.ids) for row in case.rows) + case.padding  # columns since the last forward
        self.rows: list[list[int | None]] = [[None] * (self.new - len(row.ids)) + row.ids for row in case.rows]
        self.cache = DynamicCache() if case.use_cache else None
        self.kept: list[Answer] | None = None  # what is in the cache

    def say(self, turn: tuple[tuple[int, ...], ...]) -> None:
        self.new = max(map(len, turn))
        for row, said in zip(self.rows, turn, strict=True):
            row.extend([None] * (self.new - len(said)) + list(said))

    def crop(self, tokens: int) -> None:
        if tokens:
            assert self.cache is not None
            self.cache.crop(-tokens)
            self.rows = [row[:-tokens] for row in self.rows]

    def expected(self) -> list[Answer]:
        """The reference's answer to each row alone. Choices that are too close to call are assumed away."""
        case, answers = self.case, []
        for index, (row, said) in enumerate(zip(case.rows, self.rows, strict=True)):
            embeds = case.model.reference.embed(token for token in said if token is not None)
            frozen = None if self.kept is None else self.kept[index]
            answers.append(case.model.reference.answer(embeds, row.sys, row.img, case.method, frozen))
            assume(answers[-1].gap > GAP)
        return answers

    def logits(self) -> Tensor:
        """Ours, of what was said since the last forward, or of everything where there is no cache."""
        case = self.case
        real = torch.tensor([[token is not None for token in row] for row in self.rows])
        ids = torch.tensor([[token or 0 for token in row] for row in self.rows])
        given = self.new if case.use_cache else ids.shape[1]
        inputs: dict[str, Any] = {"input_ids": ids[:, -given:]}
        if case.embedded:
            embeds = self.ours.get_input_embeddings()(inputs["input_ids"])
            # What padding holds must not matter.
            inputs = {"inputs_embeds": torch.where(real[:, -given:, None], embeds, 50.0)}
        if not real.all():
            inputs["attention_mask"] = real.long()
        if case.masked and self.kept is None:
            place = real.cumsum(dim=1) - 1
            begin = torch.tensor([[row.sys] for row in case.rows])
            end = torch.tensor([[row.sys + row.img] for row in case.rows])
            inputs["image_mask"] = real & (place >= begin) & (place < end)
        if case.positioned:
            inputs["position_ids"] = (real.cumsum(dim=1) - 1).clamp(min=0)[:, -given:]
        logits = self.ours(**inputs, past_key_values=self.cache, use_cache=case.use_cache).logits
        assert isinstance(logits, Tensor)
        return logits

    def check(self) -> None:
        """One forward: what each row keeps, and the logits of its tokens, all that are left of it or the new ones."""
        answers = self.expected()
        logits = self.logits()

        model = self.ours.model
        for stage in ("txt", "img", "last", "selected"):
            choices = [getattr(answer, stage) for answer in self.kept or answers]
            kept: Any = getattr(model.kept, stage, None)
            if all(choice is None for choice in choices):
                assert kept is None
            else:
                assert [row.tolist() for row in kept] == [choice or [] for choice in choices]
        for row, ours, answer in zip(self.rows, logits, answers, strict=True):
            given = len(answer.logits)
            if self.kept is not None:
                given = sum(token is not None for token in row[-self.new :])
            expected = answer.logits[-given:]
            assert_allclose(ours[-given:], expected, rtol=0, atol=CLOSE * abs(expected).max())
        if self.case.use_cache and self.kept is None:
            self.kept = answers


def as_the_reference(case: Case) -> None:
    """Everything that is said in this case is answered as the reference answers each row alone."""
    lengths = None
    if not case.masked:
        row = case.rows[0]
        lengths = Prompt(torch.empty(0), row.sys, row.img)
    case.model.switch_on(case.method, lengths)
    tape = Tape(case)
    tape.check()
    for index, turn in enumerate(case.turns):
        if index == len(case.turns) - 1:
            tape.crop(case.cropped)
        tape.say(turn)
        tape.check()


@st.composite
def models(draw: st.DrawFn) -> Model:
    heads = draw(st.integers(1, 4))
    return Model(
        layers=draw(st.integers(2, 5)),
        heads=heads,
        kv_heads=draw(st.sampled_from([shared for shared in range(1, heads + 1) if heads % shared == 0])),
        head_dim=draw(st.sampled_from([4, 6, 8])),
        hidden=heads * draw(st.integers(16 // heads, 32 // heads)),
        attention=draw(st.sampled_from(["sdpa", "eager"])),
        biases=draw(st.booleans()),
        rope_theta=draw(st.sampled_from([10.0, 10_000.0])),
        seed=draw(seeds),
    )


@st.composite
def himap(draw: st.DrawFn, layers: int, img: int) -> Himap:
    """Stages in any layers, next to each other or beyond the last; no image stage; ranks from none to all."""
    txt_layer = draw(st.integers(1, max(1, layers - 2)) | st.integers(1, layers))
    txt_rank = draw(st.integers(0, img) | st.integers(img // 2, img))
    img_layer = draw(st.just(txt_layer + 1) | st.integers(txt_layer + 1, layers + 1) | st.none())
    img_rank = None if img_layer is None else draw(st.integers(0, txt_rank))
    return Himap(txt_layer, txt_rank, img_layer, img_rank)


@st.composite
def fastv(draw: st.DrawFn, layers: int, img: int) -> Fastv:
    """In any layer, or beyond the last; a rank from none to all."""
    return Fastv(agg_layer=draw(st.integers(1, layers)), attention_rank=draw(st.integers(0, img)))


@st.composite
def custom(draw: st.DrawFn, layers: int, img: int) -> Custom:
    """In any layer, or beyond the last; at times as many kept as there are, or more."""
    return Custom(
        agg_layer=draw(st.just(0) | st.integers(0, layers)),
        kept_tokens=draw(st.integers(1, img + 1)),
        selection_method=draw(st.sampled_from(["fps", "tome"])),
        temperature=draw(st.sampled_from([0.05, 0.1, 1.0])),
        first_index=draw(st.integers(0, img - 1)),
        drop=draw(st.booleans()),
    )


seeds = st.integers(0, 2**32 - 1)
said = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=4).map(tuple)
rows_with_image = st.builds(Row, st.integers(0, 6), st.integers(1, 20), st.integers(1, 8), seeds)
rows_of_text = st.builds(Row, st.integers(0, 6), st.just(0), st.integers(1, 8), seeds)


@st.composite
def single(draw: st.DrawFn, method: Any, *, turns: int = 0, use_cache: bool = False) -> Case:
    model, row = draw(models()), draw(rows_with_image)
    case = Case(
        model,
        draw(method(model.layers, row.img)),
        (row,),
        turns=tuple((draw(said),) for _ in range(turns and draw(st.integers(1, turns)))),
        use_cache=use_cache,
        masked=draw(st.booleans()),
        embedded=draw(st.booleans()),
        positioned=draw(st.booleans()),
    )
    return replace(case, cropped=draw(crops(case))) if use_cache else case


@st.composite
def batches(draw: st.DrawFn, method: Any, *, use_cache: bool) -> Case:
    model = draw(models())
    rows = draw(st.lists(rows_with_image | rows_of_text, min_size=2, max_size=4).map(tuple))
    smallest = min((row.img for row in rows if row.img), default=1)
    positioned = draw(st.booleans())
    turns = draw(st.lists(st.tuples(*[said] * len(rows)), min_size=int(use_cache), max_size=3))
    if not (use_cache and positioned):  # or there would be padding between a row's tokens
        turns = [tuple(one[: min(map(len, turn))] for one in turn) for turn in turns]
    case = Case(
        model,
        draw(method(model.layers, smallest)),
        rows,
        turns=tuple(turns),
        use_cache=use_cache,
        padding=draw(st.integers(0, 2)),
        embedded=draw(st.booleans()),
        positioned=positioned,
    )
    return replace(case, cropped=draw(crops(case))) if use_cache else case


def crops(case: Case) -> st.SearchStrategy[int]:
    """Any number of tokens but the image's."""
    said = sum(max(map(len, turn)) for turn in case.turns[:-1])
    return st.integers(0, said + min(row.text for row in case.rows))


def golden_cases() -> list[tuple[str, str]]:
    files = ("himap_mha_A", "himap_mha_B", "custom_mha_A")
    return [(name, mode) for name in files for mode in sorted({key.rsplit(".", 1)[0] for key in golden(name)})]


@pytest.fixture(scope="module")
def golden_reference() -> Reference:
    llama = golden_llama(LlamaForCausalLM)
    return Reference(llama.state_dict(), llama.config)


@pytest.mark.parametrize(("name", "mode"), golden_cases())
def test_the_reference_itself(golden_reference: Reference, name: str, mode: str) -> None:
    """Logits, scores, choices and lengths of the golden prompts, and 2 tokens decoded, are those of the vectors."""
    prompt = Prompt.golden(name[-1])
    vectors = {key.rsplit(".", 1)[1]: array for key, array in golden(name).items() if key.rsplit(".", 1)[0] == mode}
    method: Method | None = None
    if himap_mode := re.fullmatch(r"himap_t(\d+)_r(\d+)_i(\d+)_r(\d+)", mode):
        method = Himap(*map(int, himap_mode.groups()))
    elif custom_mode := re.fullmatch(r"custom_(\w+)_k(\d+)_l(\d+)_tau([\d.]+)", mode):
        how, kept, layer, temperature = custom_mode.groups()
        first = int(vectors.get("first_index", 0))
        method = Custom(int(layer), int(kept), how, float(temperature), first, drop=False)

    embeds: Array = prompt.embeds[0].double().numpy()
    answer = golden_reference.answer(embeds, prompt.sys, prompt.img, method)

    assert_allclose(answer.logits, vectors["logits"], **LOGITS)
    if isinstance(method, Himap):
        image = range(prompt.sys, prompt.sys + prompt.img)
        for stage, keep in (("txt", answer.txt), ("img", answer.img)):
            expected = vectors.get(f"{stage}_keep")
            assert keep == (None if expected is None else [p - prompt.sys for p in expected if p in image])
        for scores, stage in zip(answer.scores, ("txt", "img"), strict=False):
            assert_allclose(scores, vectors[f"{stage}_scores"], **SCORES)
        assert answer.lengths == vectors["layer_seq_len"].tolist()
        assert answer.positions == vectors["final_pos"].tolist()
        assert answer.gap == pytest.approx(vectors["selection_gap"].min(), abs=SCORES["atol"])
    if isinstance(method, Custom):
        assert answer.selected == (vectors["selected"].tolist() if "selected" in vectors else None)
    for step in range(2):
        answer = golden_reference.answer(embeds, prompt.sys, prompt.img, method)
        assert_allclose(answer.logits[-1], vectors["gen_last_logits"][step], **LOGITS)
        embeds = np.concatenate([embeds, golden_reference.embed([int(vectors["gen_ids"][step])])])


@tried_on(single(himap), "himap")
def test_himap(case: Case) -> None:
    """A prompt without a cache: the tokens kept by each stage, and the logits of all that are left."""
    as_the_reference(case)


@tried_on(single(himap, turns=3), "himap scored anew")
def test_himap_scores_anew(case: Case) -> None:
    """Without a cache new tokens are text rows that take part in each forward's choice."""
    as_the_reference(case)


@tried_on(single(fastv, turns=2), "fastv")
def test_fastv(case: Case) -> None:
    """A prompt without a cache: the tokens that the last token attends to, which new tokens choose anew."""
    as_the_reference(case)


@tried_on(single(fastv, turns=3, use_cache=True), "fastv cached")
def test_fastv_on_a_cache(case: Case) -> None:
    """Turns on one cache, the last after tokens are taken back, give the same as all anew with the prompt's choice."""
    as_the_reference(case)


@tried_on(batches(fastv, use_cache=False), "fastv batch")
def test_fastv_in_a_batch(case: Case) -> None:
    """Each row of a left-padded batch is pruned by attention of its own last token."""
    as_the_reference(case)


@tried_on(batches(fastv, use_cache=True), "fastv batch cached")
def test_fastv_in_a_batch_on_a_cache(case: Case) -> None:
    """A batch goes on with its rows' choices."""
    as_the_reference(case)


@tried_on(single(custom), "custom")
def test_custom_selection(case: Case) -> None:
    """A prompt without a cache: the tokens selected, in their order, and the logits of all that are left."""
    as_the_reference(case)


@tried_on(single(himap, turns=4, use_cache=True), "himap cached")
def test_himap_on_a_cache(case: Case) -> None:
    """Turns on one cache, the last after tokens are taken back, give the same as all anew with the prompt's choice."""
    as_the_reference(case)


@tried_on(single(custom, turns=4, use_cache=True), "custom cached")
def test_custom_selection_on_a_cache(case: Case) -> None:
    """Turns on one cache give the same as computing all anew, whether what is left over is zeroed or dropped."""
    as_the_reference(case)


@tried_on(batches(himap, use_cache=False), "himap batch")
def test_a_batch(case: Case) -> None:
    """Each row of a left-padded batch, some without an image, chooses and is answered as if it were alone."""
    as_the_reference(case)


@tried_on(batches(custom, use_cache=False), "custom batch")
def test_custom_selection_in_a_batch(case: Case) -> None:
    """Custom selection too treats each row as if it were alone, the first index counting in each row's image."""
    as_the_reference(case)


@tried_on(batches(himap, use_cache=True), "himap batch cached")
def test_a_batch_on_a_cache(case: Case) -> None:
    """Turns on a batch's cache are answered as if alone, where some rows say less, and after tokens are taken back."""
    as_the_reference(case)


@tried_on(batches(custom, use_cache=True), "custom batch cached")
def test_custom_selection_in_a_batch_on_a_cache(case: Case) -> None:
    """So they are in custom selection, whether what is left over is zeroed or dropped."""
    as_the_reference(case)


def test_hundreds_of_cases() -> None:
    """With --full the properties hold in at least 500 cases; each test goes on until it has seen its share hold."""
    assert sum(CASES.values()) >= 500
