"""Heads shared out over processes (`tp_plan="auto"`, gloo): every process chooses as one process does."""

from __future__ import annotations

import multiprocessing
import os
import socket
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed, nn

import himap.runs
from himap import HimapLlamaForCausalLM, Kept
from himap.tensor_parallel import heads_group, summed_over_heads
from tests.himap.models import LOGITS, Prompt, custom_on, fastv_on, golden_llama, himap_on

PROMPT = Prompt.golden("A")
SEED = 5  # of the first process, whose draws count; the others' differ
LONGEST = 60  # seconds for a case of all processes
SETTINGS: dict[str, Callable[[Any], None]] = {
    "himap": lambda config: himap_on(config, PROMPT),
    "fastv": lambda config: fastv_on(config, PROMPT),
    "fps": lambda config: custom_on(config, PROMPT, selection_method="fps"),
    "fps, dropped": lambda config: custom_on(config, PROMPT, selection_method="fps", drop=True),
    "tome": lambda config: custom_on(config, PROMPT),
}


def switch_to(model: HimapLlamaForCausalLM, setting: str) -> None:
    for name in ("use_hmap_v", "use_fast_v", "use_custom_selection"):
        setattr(model.config, name, False)
    SETTINGS[setting](model.config)


def choices(kept: Kept) -> dict[str, Any]:
    return {name: np.stack([row.numpy() for row in rows]) for name, rows in vars(kept).items() if rows is not None}


@torch.no_grad()
def answers(model: HimapLlamaForCausalLM, seed: int) -> dict[str, Any]:
    """Choices and outputs of each setting: of a prompt, a padded batch, a whole answer, and ties."""
    batch, padding = PROMPT.embeds.repeat(2, 1, 1), torch.ones(2, PROMPT.length, dtype=torch.int64)
    batch[0], padding[0, :2] = batch[0].roll(2, dims=0), 0
    ids = torch.randint(3, 128, (1, PROMPT.length), generator=torch.Generator().manual_seed(3))
    result: dict[str, Any] = {}
    torch.manual_seed(seed)
    for setting in SETTINGS:
        switch_to(model, setting)
        logits = model(inputs_embeds=PROMPT.embeds, use_cache=False).logits
        result[f"{setting}: prompt"] = {"logits": logits.numpy(), **choices(model.model.kept)}
        logits = model(inputs_embeds=batch, attention_mask=padding, use_cache=False).logits
        result[f"{setting}: batch"] = {"logits": logits[:, -1].numpy(), **choices(model.model.kept)}
        tokens = model.generate(ids, max_new_tokens=4, do_sample=False)
        result[f"{setting}: answer"] = {"tokens": tokens.numpy()}
    for layer in (1, 3):
        model.model.layers[layer].self_attn.k_proj.weight.zero_()  # every key is looked at alike: only ties are left
    for setting in ("himap", "fastv"):
        switch_to(model, setting)
        model(inputs_embeds=PROMPT.embeds, use_cache=False)
        result[f"{setting}: ties"] = choices(model.model.kept)
    return result


def _process(rank: int, world: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)  # `tp_plan` is the name that transformers 5.17 knows, too
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world}
    os.environ.update({name: str(value) for name, value in address.items()})
    distributed.init_process_group("gloo", rank=rank, world_size=world)
    model = HimapLlamaForCausalLM.from_pretrained(folder, tp_plan="auto", attn_implementation="sdpa").eval()
    flat = {
        f"{case}|{name}": value
        for case, figures in answers(model, SEED + rank).items()
        for name, value in figures.items()
    }
    np.savez(folder / f"{rank}.npz", **flat)
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("golden")
    golden_llama(HimapLlamaForCausalLM).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return answers(golden_llama(HimapLlamaForCausalLM), SEED)


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.full)])
def test_all_processes_choose_as_one_does(world: int, folder: Path, alone: dict[str, Any]) -> None:
    """The same tokens kept, the same answers, and logits equal but for rounding, whatever each process's seed is."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Forked: a process of its own would import transformers for longer than the test takes.
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_process, args=(rank, world, port, folder)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(LONGEST)
        process.kill()
    assert [process.exitcode for process in processes] == [0] * world
    assert alone["himap: ties"]["txt"].tolist() == [list(range(12))]
    for rank in range(world):
        with np.load(folder / f"{rank}.npz") as file:
            figures = dict(file)
        for case, expected in alone.items():
            for name, value in expected.items():
                got = figures.pop(f"{case}|{name}")
                if name == "logits":
                    np.testing.assert_allclose(got, value, **LOGITS, err_msg=f"{case}, rank {rank}")
                else:
                    np.testing.assert_array_equal(got, value, err_msg=f"{case}, rank {rank}: {name}")
        assert not figures


def test_heads_that_nobody_knows_of() -> None:
    """Fewer heads than the model's and no group that has the others: refused, not scored by half."""
    with pytest.raises(ValueError, match=r"need the attention of all 4 heads, got 2 of them and no process group"):
        summed_over_heads([torch.ones(3)], 2, 4, None)


def test_a_plain_weight_has_no_group() -> None:
    """One process has all heads, and its scores are what they are."""
    scores = [torch.ones(3)]
    assert heads_group(nn.Linear(2, 2)) is None
    assert heads_group(SimpleNamespace(weight=None)) is None  # type: ignore[arg-type]
    assert summed_over_heads(scores, 4, 4, None) is scores


@pytest.mark.parametrize(
    ("tokens", "queries", "keys", "text"),
    [
        (38, 32, 64, "queries and keys must be shared out alike, got 2 of 4 heads and 4 of 4"),
        (19, 64, 64, "need the attention of all 38 tokens, got 19"),
        (38, 32, 32, "need the attention of all 4 heads, got 2"),
    ],
)
def test_a_share_that_cannot_be_scored(
    llama: HimapLlamaForCausalLM, tokens: int, queries: int, keys: int, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Projections of fewer heads or tokens than the model's, shared out in a way that is not known."""
    himap_on(llama.config, PROMPT)
    scored = himap.runs.Prefill._scored

    def of_a_share(run: Any, stage: Any, attention: Any, query: torch.Tensor, key: torch.Tensor) -> Any:
        return scored(run, stage, attention, query[:, :tokens, :queries], key[:, :tokens, :keys])

    monkeypatch.setattr(himap.runs.Prefill, "_scored", of_a_share)
    with pytest.raises(ValueError, match=text):
        llama(inputs_embeds=PROMPT.embeds, use_cache=False)
