"""LLaVA of 7B (or 13B) with no GPU: peaks, budgets and fit in every mode, on a simulated card.

Growth is judged on real runs.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from himap import HimapLlavaForConditionalGeneration
from llava.answering import Answerer
from llava.builder import load_pretrained_model
from llava.modes import MODES, set_mode
from llava.prompt_figures import prompt_figures
from llava.questions import Question, embedded_questions
from tests.memory.probes import AttentionProbe, cache_bytes_per_token
from vram import Budget, Recording, judge_peak, replay
from vram.errors import NotRecorded
from vram.meters.simulated import SimulatedCudaMeter
from vram.replaying.collector import cheap_collections
from vram.session import VramSession
from vram.simulated.context import DEVICE, SimulatedCuda

BUDGETS = Path(__file__).parents[2] / "ci" / "budgets"
CARDS = {"7b": "24GiB", "13b": "A100-40"}
HEADS = {"7b": 32, "13b": 40}
# LLaVA-1.5 in float16. 7B: the figure; its CLIP, 303,507,456 parameters, is 13B's too. 13B: LLaMA's published
# 13,015,864,320, 64 rows more in two matrices, CLIP, and the projector.
WEIGHTS_BYTES = {
    "7b": 14_126_854_144,
    "13b": 2 * (13_015_864_320 + 2 * 64 * 5120 + 303_507_456 + (1024 + 1 + 5120 + 1) * 5120),
}
NEW_TOKENS = 3

pytestmark = pytest.mark.filterwarnings("ignore:simulated CUDA is tested with torch")


@dataclass
class Simulated:
    """One model on one card, and what was recorded on it."""

    cuda: SimulatedCuda
    preset: str
    model: HimapLlavaForConditionalGeneration
    answerer: Answerer
    question: Question
    attention: str
    recordings: dict[str, Recording]
    softmax_bytes: dict[str, int]

    @property
    def prompt_tokens(self) -> int:
        return len(self.answerer.prompts.ids(self.question))

    def recording(self, vram: VramSession, mode: str) -> Recording:
        """One question, answered once in `mode`."""
        if mode not in self.recordings:
            probe = AttentionProbe(self.model.model.language_model)
            self.recordings[mode] = self.replayed(
                vram.replay,
                mode,
                probe,
                name=f"{self.preset} {mode}, {self.attention}",
                facts={"attention": self.attention},
            )
            self.softmax_bytes[mode] = probe.softmax_peak_bytes
            config, lengths = self.model.config.text_config, self.answerer.prompts.lengths(self.question)
            cache_bytes, flops_ratio = prompt_figures(config, self.model.dtype, [lengths])  # in the mode of the step
            notes = {"cache_bytes": cache_bytes, "flops_ratio": flops_ratio}
            vram.note(self.recordings[mode], softmax_peak_bytes=probe.softmax_peak_bytes, **notes)
        return self.recordings[mode]

    def replayed(self, replay: Callable[..., Recording], mode: str, probe: AttentionProbe, **options: Any) -> Recording:
        """The same by `replay`, anew."""

        def step(question: Question) -> None:
            set_mode(self.model, mode)
            with probe.watching():
                self.answerer.answer(question)

        with self.cuda:
            gc.collect()
            torch.cuda.empty_cache()  # else blocks lie where the modes before have left room
            return replay(step, [self.question], laps=1, meters=[SimulatedCudaMeter(self.cuda)], **options)


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def simulated(request: pytest.FixtureRequest) -> Iterator[Simulated]:
    """LLaVA-1.5 in float16, of which no byte is there: 7B, or what --simulated names."""
    preset = request.config.getoption("--simulated")
    question = next(each for each in embedded_questions(20) if each.image is not None)
    with SimulatedCuda(request.config.getoption("--vram-card") or CARDS[preset]) as cuda:
        tokenizer, model, processor, _ = load_pretrained_model(preset, device=DEVICE, attn_implementation=request.param)
        answerer = Answerer(tokenizer, model, processor, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS)
        cuda.take_workspace()  # else it lies where the first mode has left room
    with cheap_collections():  # else each replay looks through two models, some times over
        yield Simulated(cuda, preset, model, answerer, question, request.param, {}, {})


@pytest.fixture
def budget(vram: VramSession, simulated: Simulated, mode: str) -> Callable[[str], Budget]:
    """The budget of a figure, for exactly this card, attention, mode and versions."""
    key = {
        "card": simulated.cuda.card.name,
        "attention": simulated.attention,
        "torch": ".".join(str(torch.__version__).split(".")[:2]),
        "transformers": ".".join(transformers.__version__.split(".")[:2]),
        "mode": mode,
    }
    return lambda figure: vram.budget(BUDGETS / f"{simulated.preset}.toml", **key, figure=figure)


def hold(vram: VramSession, budget: Budget, n_bytes: int) -> None:
    """Not one byte over the reviewed budget; a new one is new, never passed."""
    budget = vram.accept(budget, n_bytes)
    if budget.limit_bytes is None:
        raise NotRecorded(budget.new_text)
    assert judge_peak(n_bytes, budget.limit_bytes) is None, judge_peak(n_bytes, budget.limit_bytes)


def test_the_weights_are_the_model_s(simulated: Simulated) -> None:
    """To the byte."""
    assert sum(each.nbytes for each in simulated.model.parameters()) == WEIGHTS_BYTES[simulated.preset]


@pytest.mark.parametrize("mode", MODES)
def test_an_answer_fits_the_card_within_its_budget(
    vram: VramSession, simulated: Simulated, budget: Callable[[str], Budget], mode: str
) -> None:
    """The most at once, in tensors and in blocks, and what prefill takes of it, byte for byte; the card has room."""
    recording = simulated.recording(vram, mode)
    vram.assert_peak(recording, budget("answer"))
    hold(vram, budget("answer, in blocks"), recording.peak_bytes("allocated_peak"))
    hold(vram, budget("prefill"), int(recording.marks["token"]["requested_peak"][0][0][0]))
    card = simulated.cuda.card
    assert recording.peak_bytes("reserved") <= card.total_bytes - card.context_bytes


@pytest.mark.parametrize("mode", ["custom-fps"])
def test_figures_do_not_depend_on_what_ran_before(vram: VramSession, simulated: Simulated, mode: str) -> None:
    """A mode alone, or after all the others: the same bytes, blocks and segments."""
    before = simulated.recording(vram, mode)
    for other in MODES:
        simulated.recording(vram, other)
    again = simulated.replayed(replay, mode, AttentionProbe(simulated.model.model.language_model))
    assert [again.peak_bytes(channel) for channel in again.channels] == [
        before.peak_bytes(channel) for channel in before.channels
    ]


@pytest.mark.parametrize("mode", MODES)
def test_a_token_adds_its_cache_and_nothing_else(vram: VramSession, simulated: Simulated, mode: str) -> None:
    """In real shapes too: keys and values of one token in every layer, and at most 32 B of ids and mask."""
    readings = simulated.recording(vram, mode).marks["token"]["requested"][0][0]
    cache_bytes = cache_bytes_per_token(simulated.model.config.text_config, simulated.model.dtype)
    assert cache_bytes <= int(readings[-1] - readings[-2]) <= cache_bytes + 32


@pytest.mark.parametrize("mode", ["baseline"])
def test_the_softmax_is_the_incident_s(vram: VramSession, simulated: Simulated, mode: str) -> None:
    """Eager attention makes one float32 map of heads x N x N, as "Tried to allocate 48.00 MiB" was; SDPA makes none."""
    simulated.recording(vram, mode)
    maps_bytes = HEADS[simulated.preset] * simulated.prompt_tokens**2 * 4
    assert simulated.softmax_bytes[mode] == (maps_bytes if simulated.attention == "eager" else 0)


@pytest.mark.parametrize("mode", ["himap"])
def test_himap_needs_a_fraction_of_what_baseline_needs(vram: VramSession, simulated: Simulated, mode: str) -> None:
    """Above the weights, at the paper's setting: at most half."""
    others: dict[str, Any] = {"besides_bytes": simulated.recording(vram, "baseline").before["requested"]}
    vram.assert_ratio(simulated.recording(vram, mode), simulated.recording(vram, "baseline"), at_most=0.5, **others)
