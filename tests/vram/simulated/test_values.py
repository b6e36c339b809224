"""Values in a simulation: known where they decide, assumed where a run chooses, refused where they are unknown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses import fake_tensor
from torch.nn.attention.flex_attention import flex_attention

from tests.vram.simulated.devices import device
from vram.simulated.known_values import KnownValues, UnknownValue


def test_real_tensors_come_along_with_what_they_hold() -> None:
    """Inputs made outside become fake; small integers keep their values."""
    ids, pixels = torch.tensor([[1, 5, 5, 2]]), torch.randn(1, 3, 4, 4)
    with device():
        there = ids.to("cuda")
        assert (there == 5).sum().item() == 2
        assert there.tolist() == [[1, 5, 5, 2]]
        assert (there == 5).nonzero().shape == (2, 2)
        assert bool((there[0, :2] == torch.tensor([1, 5], device="cuda")).all())
        assert nn.Conv2d(3, 8, 2, device="cuda")(pixels.cuda()).shape == (1, 8, 3, 3)


def test_values_follow_writes_and_are_lost_where_something_unknown_is_written() -> None:
    """Through views too: a value that may be wrong is no value."""
    with device():
        numbers = torch.arange(6, device="cuda")
        numbers[2:4] = 9
        assert numbers.tolist() == [0, 1, 9, 9, 4, 5]
        numbers[:1].copy_(torch.randn(1, device="cuda"))
        with pytest.raises(UnknownValue, match=r"test_values\.py:\d+ test_values_follow.* depends on activations"):
            numbers[5].item()


def refused(numbers: torch.Tensor, _: torch.Tensor) -> None:
    with pytest.raises(RuntimeError, match=r"same device|different devices"):
        numbers.add_(torch.ones(60, dtype=torch.int64))


WRITES: dict[str, Callable[[torch.Tensor, torch.Tensor], object]] = {
    "in place": lambda numbers, unknown: numbers.add_(unknown),
    "out=": lambda numbers, unknown: torch.add(numbers, unknown, out=numbers),
    "many at once": lambda numbers, unknown: torch._foreach_add_([numbers], [unknown]),
    "data": lambda numbers, unknown: setattr(numbers, "data", unknown),
    "of another device": refused,
    "as another dtype": lambda numbers, unknown: numbers.view(torch.float64).copy_(unknown),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_what_is_written_is_never_the_old_value(write: Callable[[torch.Tensor, torch.Tensor], object]) -> None:
    """However the unknown comes into a tensor."""
    with device():
        numbers, unknown = torch.arange(60, device="cuda"), torch.randn(60, device="cuda").long()
        write(numbers, unknown)
        with pytest.raises(UnknownValue):
            numbers[0].item()


def test_what_is_written_through_a_view_that_is_too_large_to_be_known_is_not_the_old_value() -> None:
    """Through a view of that view too; what is only looked at stays known."""
    with device():
        numbers = torch.zeros(2**19 + 1, dtype=torch.complex64, device="cuda")
        view = torch.view_as_real(numbers)[:10]
        assert numbers[0].item() == 0
        view.copy_(torch.randn(10, 2, device="cuda"))
        with pytest.raises(UnknownValue):
            numbers[0].item()


def test_places_in_the_memory_of_a_tensor_from_outside_are_not_guessed() -> None:
    """In main memory those between are there; of every other number that came to the card they are not."""
    numbers = torch.arange(10)[::2]
    with device():
        assert numbers.as_strided((3,), (1,), 0).tolist() == [0, 1, 2]
        assert numbers.cuda().as_strided((3,), (1,), 0).tolist() == [0, 2, 4]


def test_writes_into_a_tensor_from_outside_with_nan_are_kept() -> None:
    """NaN is not equal to itself, and yet not changed."""
    scale = torch.tensor([torch.nan, 1.0])
    with device():
        scale[1] = 5
        assert scale[1].item() == 5


def test_writes_into_a_tensor_from_outside_are_kept() -> None:
    """It is in main memory, inside and outside: the next reads what the last wrote, wherever that was."""
    counter = torch.tensor([1, 2, 3])
    cuda = device()
    with cuda:
        counter[0] = 7
        assert counter.cuda().tolist() == [7, 2, 3]
    counter[2] = 9
    with cuda:
        assert counter.cuda().tolist() == [7, 2, 9]


def test_known_masks_choose() -> None:
    """Unknown values too: a card needs the mask alone to know how many."""
    with device():
        values, mask = torch.randn(4, 3, device="cuda"), torch.tensor([True, False, True, True], device="cuda")
        assert values[mask].shape == (3, 3)
        assert values[mask, 1].shape == (3,)
        assert torch.masked_select(values, mask[:, None]).shape == (9,)
        assert torch.arange(4, device="cuda")[mask].tolist() == [0, 2, 3]


def test_masks_that_look_like_activations_are_known() -> None:
    """Made of what a tensor looks like, and not of what it holds."""
    with device():
        values = torch.randn(40, 3, device="cuda")
        for mask in (
            torch.zeros_like(values[:, 0], dtype=torch.bool),
            values.new_zeros(40, dtype=torch.bool),
            torch.full_like(values[:, 0], 0, dtype=torch.bool),
            torch.full((40,), False, device="cuda"),
            torch.zeros_like(torch.empty(40, 2**40)[:, 0], dtype=torch.bool).cuda(),
        ):
            mask[:7] = True
            assert values[mask].shape == (7, 3)
        assert values.new_ones(2, dtype=torch.int64).tolist() == values[0, :2].new_full((2,), 1).tolist() == [1, 1]
        with pytest.raises(UnknownValue):
            torch.empty_like(values[0]).tolist()


def test_what_is_too_large_to_be_known_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mask of a prompt of 100,000 tokens would take 10 GB of main memory, to be forgotten at once."""
    computed: list[str] = []
    own = KnownValues._on_values

    def spied(known_values: KnownValues, func: Any, args: Any, kwargs: Any) -> Any:
        computed.append(func._schema.name)
        return own(known_values, func, args, kwargs)

    monkeypatch.setattr(KnownValues, "_on_values", spied)
    with device():
        places = torch.arange(2000, device="cuda")
        assert (places[:, None] >= places).shape == torch.eye(2000, device="cuda").shape
        assert (places[:10, None] >= places[:10]).sum().item() == 55
    assert computed.count("aten::ge") == 1
    assert "aten::eye" not in computed


def test_masks_of_floats_are_known() -> None:
    """They are made of nothing, whatever their dtype; nn.TransformerEncoder asks whether one is causal."""
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, batch_first=True), 1, enable_nested_tensor=False)
    with device():
        mask = nn.Transformer.generate_square_subsequent_mask(9, device="cuda")
        assert encoder.cuda()(torch.zeros(1, 9, 16, device="cuda"), mask=mask).shape == (1, 9, 16)
        assert torch.ones(40, device="cuda").long().sum().item() == 40
        assert torch.linspace(0, 99, 20, device="cuda").long()[-1].item() == 99
        mask.normal_()
        with pytest.raises(UnknownValue):
            mask[0, 0].item()
        with pytest.raises(UnknownValue):
            torch.empty(40, device="cuda").sum().item()


def test_running_statistics_of_unknown_batches_are_unknown() -> None:
    """Though no schema says that they are written into."""
    with device():
        norm = nn.BatchNorm1d(3).cuda()
        assert norm.running_mean.tolist() == [0, 0, 0]
        norm(torch.randn(5, 3, device="cuda"))
        assert norm.num_batches_tracked.item() == 1
        for statistics in (norm.running_mean, norm.running_var):
            with pytest.raises(UnknownValue):
                statistics.tolist()


def test_random_numbers_that_programs_ask_for_are_drawn() -> None:
    """A data loader's seed; and what is drawn until it fits, as some models' first weights, is taken to fit."""
    numbers = torch.utils.data.TensorDataset(torch.arange(10))
    with device():
        assert [len(batch) for (batch,) in torch.utils.data.DataLoader(numbers, batch_size=4)] == [4, 4, 2]
        assert nn.init.trunc_normal_(torch.empty(4, 4, device="cuda")).shape == (4, 4)
        assert torch.tensor([torch.arange(3, device="cuda")[1], 5]).tolist() == [1, 5]


def test_known_values_come_to_numpy_and_into_texts() -> None:
    """A copy of them from the card, themselves from main memory; what is unknown is refused by line."""
    with device():
        there = torch.arange(3)
        there.numpy()[0] = 7
        there.cuda().numpy(force=True)[1] = 7
        assert there.tolist() == [7, 1, 2]
        ids, scores = torch.arange(3, device="cuda"), torch.randn(3, device="cuda")
        assert ids.cpu().numpy().tolist() == np.asarray(ids.cpu(), dtype=np.int32).tolist() == [0, 1, 2]
        assert f"{ids[2]:>3} {ids.sum() / 2:.1f}" == "  2 1.5"
        with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
            ids.numpy()
        for ask in (lambda: scores.cpu().numpy(), lambda: np.asarray(scores.cpu()), lambda: f"{scores.sum():.2f}"):
            with pytest.raises(UnknownValue, match=r" at .*test_values\.py:\d+ .*avoid the read"):
                ask()


def test_lists_are_read_as_a_whole_where_the_value_is_known() -> None:
    """Nested, transposed, and of one element; no operation takes them apart. What is unknown is refused by line."""
    with device() as cuda:
        turned = torch.arange(6, device="cuda").view(2, 3).t()
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(type(cuda), "run", lambda *_: pytest.fail("an operation ran"))
            assert turned.tolist() == [[0, 3], [1, 4], [2, 5]]
        assert (turned > 3).tolist() == [[False, False], [False, True], [False, True]]
        assert turned[1, 1].tolist() == 4
        turned[:1].copy_(torch.randn(1, 2, device="cuda"))
        with pytest.raises(UnknownValue, match=r" at .*test_values\.py:\d+ .*avoid the read"):
            turned.tolist()


def test_what_is_unknown_ends_with_its_tensor() -> None:
    """New tensors may lie where lost ones lay, and have values of their own."""
    with device():
        lost = [torch.arange(6, device="cuda") for _ in range(50)]
        for numbers in lost:
            numbers[:1].copy_(torch.randn(1, device="cuda"))
        del lost, numbers
        new = [torch.arange(6, device="cuda") for _ in range(50)]
        assert [numbers.tolist() for numbers in new] == [list(range(6))] * 50


def test_what_depends_on_activations_is_refused_by_operation_and_line() -> None:
    """Never a guess: the message has the operation, the line, and the way out."""
    with device():
        activations = torch.randn(4, device="cuda")
        for ask in (
            lambda: activations.sum().item(),
            lambda: activations[activations > 0],
            lambda: bool(activations[0]),
        ):
            with pytest.raises(UnknownValue, match=r"aten\.\w+.* at .*test_values\.py:\d+ .*avoid the read"):
                ask()


def sparse_on_the_card() -> torch.Tensor:
    places = torch.ones(2, 3, dtype=torch.int64, device="cuda")
    return torch.sparse_coo_tensor(places, torch.ones(3, device="cuda"), (9, 9), check_invariants=False)


def test_sparse_tensors_of_known_values_are_summed() -> None:
    with device(), torch.inference_mode():
        assert sparse_on_the_card().sum().item() == 3


UNMODELLED: dict[str, Callable[[], Any]] = {
    "_to_sparse": lambda: torch.zeros(5, 5, device="cuda").to_sparse(),
    "binomial": lambda: torch.binomial(torch.ones(3, device="cuda"), torch.ones(3, device="cuda")),
    "_coalesce": lambda: sparse_on_the_card().coalesce(),
    "mm.default of sparse tensors": lambda: sparse_on_the_card() @ torch.zeros(9, 2, device="cuda"),
}


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch 2.11
@pytest.mark.parametrize("name", UNMODELLED)
def test_operations_without_a_rule_are_refused_by_name_and_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And never tried for real on zeros, on a GPU that may be there."""
    monkeypatch.setattr(fake_tensor, "run_fallback_kernel", lambda *_: pytest.fail("it was tried"))
    with device(), pytest.raises(NotImplementedError, match=rf"not model aten\.{name}.* at .*test_values\.py:\d+ "):
        UNMODELLED[name]()


@pytest.mark.filterwarnings("ignore:.*flex_attention called without torch.compile", "ignore:.*compiled code allocates")
def test_flex_attention_is_refused_by_name_and_line() -> None:
    """Its scores are made by code that is compiled on a card."""
    with device():
        heads = torch.zeros(1, 2, 16, 16, device="cuda")
        with pytest.raises(NotImplementedError, match=r"not model flex_attention, at .*test_values\.py:\d+ "):
            flex_attention(heads, heads, heads)


def test_how_many_are_not_zero_is_not_guessed_on_the_cpu_either() -> None:
    """An identity in sparse form has as many elements as rows; zeros have none."""
    with device(), pytest.raises(NotImplementedError, match="_to_sparse"):
        torch.eye(50).to_sparse()


def test_what_generation_chooses_is_assumed() -> None:
    """argmax and multinomial give the token, then those after it; topk and sort the first positions."""
    with device(token=11):
        logits = torch.randn(2, 50, device="cuda")
        assert logits.argmax(-1).tolist() == [11, 11]
        assert torch.multinomial(logits.softmax(-1), 3).tolist() == [[11, 12, 13]] * 2
        assert torch.multinomial(logits.softmax(-1), 3, replacement=True).tolist() == [[11] * 3] * 2
        assert logits.topk(3).indices.tolist() == [[0, 1, 2]] * 2


def test_what_is_assumed_could_be_chosen() -> None:
    """There is no eighth of three classes; along each dimension every position is there once, as in a real order."""
    with device():
        scores = torch.randn(3, 5, device="cuda")
        assert scores.argmax(0).tolist() == [2] * 5
        assert scores[:, :1].argmax().item() == 2
        assert scores.sum().argmax().item() == 0
        assert scores.max(0).indices.tolist() == scores.min(0).indices.tolist() == [0] * 5
        assert sorted(torch.multinomial(scores[0].softmax(-1), 5).tolist()) == [0, 1, 2, 3, 4]
        assert scores.topk(2, dim=0).indices.tolist() == [[0] * 5, [1] * 5]
        assert scores.sort(dim=0, stable=True).indices.tolist() == [[0] * 5, [1] * 5, [2] * 5]
        chosen = torch.zeros(3, dtype=torch.bool, device="cuda")
        chosen[scores[:, :1].argsort(0).squeeze(1)[:2]] = True
        assert scores[chosen].shape == (2, 5)
