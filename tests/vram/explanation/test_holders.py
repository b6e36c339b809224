"""Who keeps a tensor alive, in a user's words."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import contextvars
import ctypes
import functools
import gc
import itertools
import re
import sys
import threading
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from vram.explanation.holders import holder
from vram.replaying.collector import frozen, unfrozen

GLOBAL: list[Any] = []
CURRENT: contextvars.ContextVar[object] = contextvars.ContextVar("current", default=None)
HERE = re.escape(__name__)


@pytest.fixture(autouse=True)
def _empty() -> Iterator[None]:
    yield
    GLOBAL.clear()
    CURRENT.set(None)


def put(value: object) -> None:
    """Keep `value` under the one name all of these share."""
    GLOBAL.append(value)


def of(make: Callable[[torch.Tensor], object]) -> str:
    """The words for the holder of a tensor that `make` was given."""
    storage = _storage(make)
    return holder(storage)


def _storage(make: Callable[[torch.Tensor], object]) -> Any:
    tensor = torch.zeros(4)
    make(tensor)
    return tensor.untyped_storage()


class Plain:
    def __init__(self, value: object) -> None:
        self.value = value

    def method(self) -> None: ...


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value


def _set(owner: Any, name: str) -> Callable[[torch.Tensor], None]:
    return lambda tensor: setattr(owner, name, tensor)


def keyword_default(tensor: torch.Tensor) -> object:
    def function(*, mask: torch.Tensor = tensor) -> torch.Tensor:
        return mask

    return function


def coroutine(tensor: torch.Tensor) -> object:
    @types.coroutine
    def pause() -> Iterator[None]:
        yield

    async def answer(ids: torch.Tensor) -> torch.Tensor:
        await pause()
        return ids

    running = answer(tensor)
    running.send(None)
    return running


def chained(tensor: torch.Tensor) -> object:
    def inner(held: torch.Tensor) -> None:
        raise KeyError

    try:
        try:
            inner(tensor)
        except KeyError as error:
            raise ValueError from error
    except ValueError as error:
        return error
    return None


def called_by(tensor: torch.Tensor) -> object:
    """The tensor is a local of the caller of what raised."""

    def raises() -> None:
        raise KeyError

    def outer(held: torch.Tensor) -> None:
        raises()
        del held

    try:
        outer(tensor)
    except KeyError as error:
        return error
    return None


def framed(tensor: torch.Tensor) -> types.FrameType:
    return sys._getframe()


def future(tensor: torch.Tensor) -> object:
    loop = asyncio.new_event_loop()
    done = loop.create_future()
    done.set_result(tensor)
    loop.close()
    return done


def task(tensor: torch.Tensor) -> object:
    async def answer() -> torch.Tensor:
        return tensor.view(4)

    async def serve() -> object:
        running = asyncio.create_task(answer())
        await running
        return running

    return asyncio.run(serve())


def objects(*held: object) -> Any:
    """An array of objects: the collector knows nothing of it."""
    array = np.empty(3, dtype=object)
    array[: len(held)] = held
    return array


@functools.cache
def doubled(tensor: torch.Tensor) -> object:
    return None


def hooked(tensor: torch.Tensor) -> object:
    weight = torch.ones(4, requires_grad=True)
    weight.register_hook(lambda gradient: gradient * tensor)  # type: ignore[no-untyped-call]
    return weight


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda t: put(t), r"^list `GLOBAL` \(1 item\), global of module {here}$"),
        (lambda t: put({"loss": t}), r"^key `loss` of dict \(1 item\) in list `GLOBAL`"),
        (lambda t: put({7: [t, 1]}), r"^list \(2 items\) at key `7` of dict"),
        (lambda t: put({(1, 2): t}), r"^key \(a tuple\) of dict"),
        (lambda t: put({t: 1}), r"^key \(as key\) of dict"),
        (lambda t: put({"k" * 60: t}), r"^key `k{{37}}\.\.\.` of dict"),
        (lambda t: put({1, t}), r"^set \(2 items\) in list"),
        (lambda t: put(collections.deque([t])), r"^deque \(1 item\) in list"),
        (lambda t: put(Plain(t)), r"^attribute `value` of Plain in list `GLOBAL`"),
        (lambda t: put(Slotted(t)), r"^attribute `value` of Slotted in list `GLOBAL`"),
        (lambda t: put(Plain(t).method), r"^attribute `value` of Plain, self of bound method Plain.method in list"),
        (lambda t: put(functools.partial(print, t)), r"^tuple `args` \(1 item\), attribute of partial in list"),
        (lambda t: put(keyword_default(t)), r"^default argument `mask` of function function in list"),
        (lambda t: put(coroutine(t)), r"^local `ids` of suspended coroutine answer in list"),
        (
            lambda t: put(chained(t)),
            r"^local `(held|tensor)` of (inner|chained) \(test_holders.py:\d+\), in the traceback of exception",
        ),
        (
            lambda t: put(called_by(t)),
            r"^local `(held|tensor)` of (outer|called_by) \(test_holders.py:\d+\), in the traceback of except",
        ),
        (lambda t: put(framed(t)), r"^local `tensor` of framed \(test_holders.py:\d+\) in list `GLOBAL`"),
        (
            lambda t: put(Plain(framed(t))),
            r"^local `tensor` of framed `value` \(test_holders.py:\d+\), attribute of Plain in list `GLOBAL`",
        ),
        # Up to Python 3.12 a dictionary, from 3.13 on a view that keeps the frame.
        (
            lambda t: put(framed(t).f_locals),
            r"^(key `tensor` of dict|local `.*, attribute of FrameLocalsProxy in list)",
        ),
        (lambda t: put(future(t)), r"attribute `_result` of Future"),
        (lambda t: put(t.numel), r"^self of bound method Tensor.numel in list `GLOBAL`"),
        (lambda t: put(objects(t)), r"^NumPy array \(3 items\) in list `GLOBAL`"),
        (
            lambda t: put(({"rows": objects({"loss": t})[1:]},)),
            r"^key `loss` of dict .* in NumPy array \(3 items\) in NumPy array \(2 items\) at key `rows` of dict",
        ),
        (lambda t: put({"ids": t.numpy()}), r"^NumPy array held by key `ids` of dict \(1 item\) in list `GLOBAL`"),
        (lambda t: put(objects(t.numpy())), r"^NumPy array held by NumPy array \(3 items\) in list `GLOBAL`"),
        (lambda t: put([CURRENT.set(t), CURRENT.set(None)][1]), r"^attribute `old_value` of Token in list `GLOBAL`"),
        (lambda t: put(task(t)), r"^attribute `_result` of Task in list `GLOBAL`"),
        (lambda t: put(hooked(t)), r"^closure variable `tensor` of function <lambda>, gradient hook of Tensor in list"),
        (lambda t: doubled(t), r"^tuple \(1 item\), argument of lru_cache of doubled, global"),
    ],
)
def test_each_kind_of_holder_is_called_what_a_user_calls_it(make: Callable[[torch.Tensor], object], words: str) -> None:
    """From the nearest holder to a name: what it is, what it is called, how large it is."""
    try:
        found = of(make)
    finally:
        doubled.cache_clear()
    assert re.search(words.format(here=HERE), found), found


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            _set(torch.nn.Linear, "left_behind"),
            "class attribute `left_behind` of class torch.nn.modules.linear.Linear",
        ),
        (_set(sys, "left_behind"), "global `left_behind` of module sys"),
    ],
)
@pytest.mark.usefixtures("others_names")
def test_a_holder_that_others_made_is_found(make: Callable[[torch.Tensor], object], words: str) -> None:
    """A class of PyTorch and a module of Python."""
    owners: tuple[Any, ...] = (torch.nn.Linear, sys)
    try:
        assert of(make) == words
    finally:
        for owner in owners:
            with contextlib.suppress(AttributeError):
                del owner.left_behind


def test_the_context_of_a_thread_is_found() -> None:
    """It was made with the thread, and holds what a context variable is set to."""
    with ThreadPoolExecutor(1) as pool:
        words = of(lambda tensor: pool.submit(CURRENT.set, [tensor]).result())
    assert words == "list `current` (1 item), context variable of a thread's context"


def nested(tensor: torch.Tensor, times: int, wrap: Callable[[Any], object]) -> object:
    found: object = functools.partial(print, tensor)
    for _ in range(times):
        found = wrap(found)
    return found


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda t: nested(t, 2, lambda inner: functools.partial(inner.__call__)),
            r"partial `__self__`, attribute of method-wrapper `func`, attribute of partial `__self__`, attribute of",
        ),
        (
            lambda t: nested(t, 9, lambda inner: functools.partial(inner.__call__)),
            r"partial `__self__` \(16 links on\), attribute of method-wrapper `func`, attribute of partial in list `GL",
        ),
        (
            lambda t: nested(t, 7, lambda inner: itertools.chain([1], inner)),
            r" \(1[258] links on\).* chain in list `GLOBAL` \(1 item\), global of module {here}$",
        ),
        (lambda t: nested(t, 7, lambda inner: [inner]), r"list \(1 item\) \(6 links on\) in list `GLOBAL`"),
        (
            lambda t: nested(t, 7, lambda inner: {"next": (inner,)}),
            r"tuple \(1 item\) \(12 links on\) at key `next` of dict \(1 item\) in list `GLOBAL`",
        ),
    ],
)
def test_a_chain_of_links_that_are_alike_is_counted(make: Callable[[torch.Tensor], object], words: str) -> None:
    """Holders of one kind, or of two or three by turns, if there are three rounds; the name at its end is told."""
    found = of(lambda tensor: put(make(tensor)))
    assert re.search(words.format(here=HERE), found), found


class Trainer:
    """Its history is what is to be mended."""

    def __init__(self) -> None:
        self.history_of_all_batches: list[object] = []


def test_a_long_chain_keeps_both_ends_and_the_place_to_mend() -> None:
    """Whole phrases: how the tensor is kept, and the attribute of the object that a module knows by name."""
    trainer = Trainer()
    put(trainer)

    def make(tensor: torch.Tensor) -> None:
        chain: object = {"logits_of_the_last_layer": tensor}
        for number in range(12):
            chain = Plain([chain]) if number % 3 else Slotted({f"entry_with_a_long_name_{number}": chain})
        trainer.history_of_all_batches.append(chain)

    text = of(make)
    assert len(text) <= 320
    assert text.startswith("key `logits_of_the_last_layer` of ")
    assert re.search(
        r" \.\.\. .*list `history_of_all_batches` \(1 item\), attribute of Trainer in list `GLOBAL` \(1 item\), global",
        text,
    ), text


def test_a_chain_of_two_thousand_links_comes_to_its_name() -> None:
    """A linked list of one's own, without a recursion that could end."""
    text = of(lambda tensor: put(nested(tensor, 1_500, Slotted)))
    assert re.search(r"Slotted `value` \(1,498 links on\), attribute of Slotted in list `GLOBAL`", text), text


def test_a_local_of_a_running_function_is_found_though_no_object_refers_to_it() -> None:
    """Nothing but this test's own variable keeps it; a variable of another thread is found as well."""
    kept = [torch.zeros(4)]
    assert re.match(r"list `kept` \(1 item\), local of test_a_local", holder(kept[0].untyped_storage()))
    ready, done = threading.Event(), threading.Event()
    storages = []

    def work() -> None:
        state = Plain(torch.zeros(4))
        storages.append(state.value.untyped_storage())  # type: ignore[attr-defined]
        ready.set()
        done.wait()

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait()
    found = holder(storages[0])
    done.set()
    thread.join()
    assert re.match(r"attribute `value` of Plain `state`, local of work \(test_holders.py:\d+\)", found), found


def test_a_storage_without_a_tensor_is_found() -> None:
    """Somebody keeps the storage and lets go of its tensor."""
    put(torch.zeros(4).untyped_storage())
    assert holder(GLOBAL[0]) == f"list `GLOBAL` (1 item), global of module {__name__}"


def test_a_name_given_ends_the_chain() -> None:
    """The step and the samples of a replay are names by themselves."""
    sample = {"ids": torch.zeros(4)}
    put(sample)
    assert holder(sample["ids"].untyped_storage(), named={id(sample): "sample 3"}) == "key `ids` of sample 3"


def test_a_module_s_own_name_comes_before_a_local_equally_near() -> None:
    """Both keep it; the global is the one to mend."""
    holding = Plain(torch.zeros(4))
    GLOBAL.append(holding)
    alias = GLOBAL
    tensor = holding.value
    assert isinstance(tensor, torch.Tensor)
    storage = tensor.untyped_storage()
    del holding, tensor
    assert alias is GLOBAL
    assert "GLOBAL" in holder(storage) or "alias" in holder(storage)


def test_gradients_and_graphs_keep_what_no_object_holds() -> None:
    """A parameter's gradient, an intermediate saved for backward, named by the tensor that one can let go of."""
    parameter = torch.nn.Parameter(torch.ones(4))
    (parameter * 2).sum().backward()  # type: ignore[no-untyped-call]
    assert parameter.grad is not None
    gradient = parameter.grad.untyped_storage()
    put(parameter)
    del parameter
    assert re.match(r"gradient of a tensor held by list `GLOBAL`", holder(gradient))
    weight = torch.ones(4, requires_grad=True)
    hidden = weight * 3
    saved = hidden.untyped_storage()
    put((hidden**2).sum())
    del hidden
    assert re.match(r"autograd graph \(PowBackward0\) of a tensor held by list `GLOBAL`", holder(saved))


def test_a_graph_is_named_by_what_keeps_it_and_not_by_the_search_itself() -> None:
    """Only the last result of a chain of graphs is kept; what lies between is not called its own holder."""
    hidden = torch.ones(4, requires_grad=True)
    total = torch.zeros(())
    for _ in range(3):
        activation = hidden.relu()
        saved = activation.untyped_storage()
        total = total + activation.square().sum()
    put({"total": total})
    del hidden, total, activation
    words = (
        r"autograd graph \((Pow|Relu)Backward0\) of a tensor held by key `total` of dict \(1 item\) in list `GLOBAL`"
    )
    assert re.match(words, holder(saved)), holder(saved)


def test_a_search_keeps_nothing_and_changes_nothing() -> None:
    """The tensor dies with its holder right after, frames keep no copy of their locals, no counts change."""
    sample = Plain(torch.zeros(4))
    tensor = sample.value
    assert isinstance(tensor, torch.Tensor)
    storage = tensor.untyped_storage()
    del tensor
    before = sys.getrefcount(sample), gc.get_threshold(), gc.get_freeze_count()
    gc.disable()  # a cycle left behind would keep it now
    try:
        holder(storage)
        assert (sys.getrefcount(sample), gc.get_threshold(), gc.get_freeze_count()) == before
        assert sum(type(found) is Plain for found in gc.get_objects()) == 1
        del sample
        assert sum(type(found) is Plain for found in gc.get_objects()) == 0
    finally:
        gc.enable()


def test_a_user_s_own_locals_dictionary_is_left_alone() -> None:
    """`locals()` kept by somebody is theirs: looking at the frame does not empty it."""
    state = Plain(torch.zeros(4))
    mine = locals()
    assert isinstance(state.value, torch.Tensor)
    holder(state.value.untyped_storage())
    assert mine["state"] is state


@pytest.mark.usefixtures("much_to_freeze")
def test_what_is_frozen_is_found_inside_the_block_and_frozen_after_it() -> None:
    """gc.freeze hides holders; the block shows them and leaves them hidden."""
    put([torch.zeros(4)])
    storage = GLOBAL[0][0].untyped_storage()
    gc.freeze()
    try:
        with unfrozen():
            assert not frozen()
            assert "GLOBAL" in holder(storage)
        assert frozen()
    finally:
        gc.unfreeze()


def test_code_of_the_objects_is_not_run() -> None:
    """Properties, comparisons, representations and lengths of a user's classes stay uncalled."""

    class Touchy(list[Any]):
        def _never(self, *_: object) -> Any:
            raise AssertionError("called")

        __eq__ = __len__ = __iter__ = __getitem__ = __repr__ = __hash__ = __contains__ = _never  # type: ignore[assignment]
        value = property(_never)

        def __getattr__(self, name: str) -> Any:
            return self._never()

    touchy = Touchy()
    tensor = torch.zeros(4)
    list.append(touchy, tensor)
    storage = tensor.untyped_storage()
    del tensor
    put(touchy)
    del touchy
    assert holder(storage).startswith("Touchy (1 item) in list `GLOBAL`")


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("part", [torch.Tensor.indices, torch.Tensor.values, torch.Tensor.col_indices])
def test_a_sparse_tensor_holds_its_parts_and_is_no_view(part: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Full of elements, its indices are larger than it would be were it dense."""
    full = torch.ones(16, 16)
    sparse = full.to_sparse_csr() if part is torch.Tensor.col_indices else full.to_sparse().coalesce()
    put(sparse)
    storage = part(sparse).untyped_storage()
    del sparse
    assert re.match(f"list `GLOBAL` \\(1 item\\), global of module {HERE}$", holder(storage)), holder(storage)


class Refusing(torch.Tensor):
    """Answers nothing, as the parameters of a lazy module do before their first batch."""

    @classmethod
    def __torch_function__(cls, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise ValueError(f"asked for {func}")


@pytest.mark.parametrize(
    "kept", [lambda t: t, lambda t: (t * torch.ones(4, requires_grad=True)).sum(), torch.Tensor.numpy]
)
def test_a_tensor_that_answers_nothing_hides_no_other(kept: Callable[[torch.Tensor], object]) -> None:
    """Each search looks at every tensor of the process."""
    refusing = torch.zeros(4).as_subclass(Refusing)
    lazy = torch.nn.LazyLinear(3)
    assert "list `GLOBAL`" in of(lambda t: put(kept(t)))
    del refusing, lazy


def test_where_no_name_is_found_the_end_says_so() -> None:
    """No object refers to what native code keeps."""
    made = torch.zeros(4)
    keeper = iter(functools.partial(print, [made]), None)
    storage = made.untyped_storage()
    address = id(keeper)
    del made
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(keeper))
    del keeper
    try:
        words = holder(storage)
    finally:
        kept = ctypes.cast(address, ctypes.py_object).value
        ctypes.pythonapi.Py_DecRef(ctypes.py_object(kept))
    assert words.startswith("list (1 item) in tuple `args` (1 item), attribute of partial, attribute of callable_it")
    assert words.endswith(" that native code keeps")


@pytest.mark.usefixtures("others_names", "much_to_freeze")
def test_native_modules_are_not_asked_what_they_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """In Python 3.12 `_asyncio` answers with dead objects, and a second search hangs or crashes the process."""
    asked: list[type] = []
    ask = gc.get_referents
    monkeypatch.setattr(gc, "get_referents", lambda *objects: asked.extend(map(type, objects)) or ask(*objects))
    weight = torch.ones(4, requires_grad=True)
    hidden = weight * 3
    put((hidden**2).sum())
    saved = hidden.untyped_storage()
    del hidden
    assert "GLOBAL" in holder(saved)  # asks all objects of the process
    module = types.ModuleType("made_here")
    module.kept = kept = torch.zeros(4)  # type: ignore[attr-defined]
    storage = kept.untyped_storage()
    del kept
    assert holder(storage).startswith("global `kept` of module made_here")
    assert len(asked) > 10_000
    assert not any(issubclass(kind, types.ModuleType) for kind in asked)


def test_what_the_collector_was_asked_with_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.13 answers with the tuple of the question's own arguments, which hid a graph; a user's tuple counts."""
    ask = gc.get_referrers
    monkeypatch.setattr(gc, "get_referrers", lambda *objects: [objects, *ask(*objects)])
    hidden = torch.ones(4, requires_grad=True) * 3
    saved = hidden.untyped_storage()
    put(((hidden**2).sum(),))
    del hidden
    words = r"autograd graph \(PowBackward0\) of a tensor held by tuple \(1 item\) in list `GLOBAL`"
    assert re.match(words, holder(saved)), holder(saved)
