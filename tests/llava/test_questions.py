from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava.builder import Checkpoint
from llava.errors import BadInput
from llava.images import Drawing
from llava.prompting import Prompts
from llava.questions import Question, chunk, embedded_questions, load_questions

from .conftest import a_record

Write = Callable[..., Path]
HUMAN, GPT = {"from": "human", "value": "Which?"}, {"from": "gpt", "value": "B"}
SHARED = Path(__file__).parents[3] / "shared" / "data" / "scienceqa"


def test_records_become_questions(write_questions: Write, images: Path) -> None:
    """Ids of both kinds, an image, a text-only record and one without a label all come through, in order."""
    file = write_questions(
        [
            a_record(id=12, image="good.png", conversations=[HUMAN, GPT]),
            a_record(id="x", conversations=[{"from": "system", "value": "s"}, HUMAN]),
            a_record(
                id=-3, image=None, conversations=[HUMAN, GPT, {"from": "human", "value": "2"}, GPT | {"value": "C"}]
            ),
        ]
    )

    assert load_questions(file, images) == [
        Question("12", "Which?", "B", (images / "good.png").resolve()),
        Question("x", "Which?", None, None),
        Question("-3", "Which?", "B", None),
    ]


def test_a_byte_order_mark_is_no_fault(write_questions: Write) -> None:
    """A file saved as "UTF-8 with BOM" reads like any other."""
    assert (
        len(
            load_questions(
                write_questions(b'\xef\xbb\xbf[{"id": 1, "conversations": [{"from": "human", "value": "a"}]}]'), None
            )
        )
        == 1
    )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe[\x00]\x00",
        b"[" * 100_000,
        b'{"id": 1}',
        b"3",
        b"null",
        b"[]",
        b'[{"id": ' + b"9" * 5000 + b"}]",
    ],
    ids=["empty", "cut", "utf-16", "nested", "object", "number", "null", "no-record", "endless-number"],
)
def test_a_file_that_is_no_list_of_records_is_refused(write_questions: Write, content: bytes) -> None:
    """Whatever is in the file, the answer is one line with the rule and the file's name."""
    with pytest.raises(BadInput, match=r"the question file must .*questions\.json") as caught:
        load_questions(write_questions(content), None)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("name", ["missing.json", ".", "\0", "n" * 400])
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, name: str) -> None:
    """Missing, a folder, or no possible name."""
    with pytest.raises(BadInput, match="the question file must be readable UTF-8 JSON"):
        load_questions(tmp_path / name, None)


@pytest.mark.parametrize(
    ("record", "rule"),
    [
        ("text", "must be an object, got 'text'"),
        ([], "must be an object"),
        (None, "must be an object"),
        (a_record(id=...), "must have an id, a string or a whole number, got None"),
        (a_record(id=True), "got True"),
        (a_record(id=1.5), "got 1.5"),
        (a_record(id=["a"]), "must have an id"),
        (a_record(id="\ud800"), "id must be valid Unicode"),
        (a_record(conversations=...), "must have conversations"),
        (a_record(conversations=[]), "must have conversations"),
        (a_record(conversations={"from": "human"}), "must have conversations"),
        (a_record(conversations=["Which?"]), "must have conversations"),
        (a_record(conversations=[GPT]), r"must have a human turn, got \['gpt'\]"),
        (a_record(conversations=[{"value": "Which?"}]), r"must have a human turn, got \[None\]"),
        (a_record(conversations=[{"from": "human"}]), "the value of a human turn must be a string, got None"),
        (a_record(conversations=[{"from": "human", "value": ["a"]}]), "the value of a human turn must be a string"),
        (a_record(conversations=[HUMAN, {"from": "gpt", "value": 3}]), "the value of a gpt turn must be a string"),
        (a_record(conversations=[{"from": "human", "value": "\ud800"}]), "must be valid Unicode"),
        (a_record(image=3), "image must be a string, got 3"),
        (a_record(image=["good.png"]), "image must be a string"),
        (a_record(image={}), "image must be a string"),
    ],
)
def test_one_bad_record_among_good_ones_is_found_and_named(
    write_questions: Write, images: Path, record: Any, rule: str
) -> None:
    """The whole file is checked; the message has the record's place, the rule and what came."""
    file = write_questions([a_record(), a_record(image="good.png"), record, a_record()])

    with pytest.raises(BadInput, match=rf"^record 2 .*of .*questions\.json.*: .*{rule}"):
        load_questions(file, images)


def _truncated(folder: Path) -> str:
    path = folder / "bad.png"
    path.write_bytes((folder / "good.png").read_bytes()[:-30])
    return path.name


def _no_image(folder: Path) -> str:
    (folder / "bad.jpg").write_text("hello")
    return "bad.jpg"


def _empty(folder: Path) -> str:
    (folder / "bad.jpg").touch()
    return "bad.jpg"


def _postscript(folder: Path) -> str:
    Image.new("RGB", (4, 4)).save(folder / "bad.eps")
    return "bad.eps"


def _ribbon(folder: Path) -> str:
    Image.new("L", (501, 1)).save(folder / "bad.png")
    return "bad.png"


def _outside(folder: Path) -> Path:
    path = folder.parent / "outside.png"
    path.write_bytes((folder / "good.png").read_bytes())
    return path


def _symlink(folder: Path) -> str:
    (folder / "link.png").symlink_to(_outside(folder))
    return "link.png"


def _symlinked_folder(folder: Path) -> str:
    _outside(folder)
    (folder / "up").symlink_to(folder.parent)
    return "up/outside.png"


def _loop(folder: Path) -> str:
    (folder / "loop.png").symlink_to(folder / "loop.png")
    return "loop.png"


def _subfolder(folder: Path) -> str:
    (folder / "sub").mkdir()
    return "sub"


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda folder: "none.png", "must be an existing file"),
        (lambda folder: "", "must be an existing file"),
        (lambda folder: "a\0b", "must be a"),
        (lambda folder: "n" * 4000, "must be a"),
        (_subfolder, "must be an existing file"),
        (_truncated, "must be readable to its end"),
        (_no_image, "must be readable to its end"),
        (_empty, "must be readable to its end"),
        (_postscript, "must be made of pixels"),
        (_ribbon, "must be at most 500 times as long as wide"),
        (lambda folder: f"../{_outside(folder).name}", "must lie inside the image folder"),
        (lambda folder: str(_outside(folder)), "must lie inside the image folder"),
        (lambda folder: str(folder / "good.png"), "must lie inside the image folder"),
        (lambda folder: "../images2/x.png", "must lie inside the image folder"),
        (_symlink, "must lie inside the image folder"),
        (_symlinked_folder, "must lie inside the image folder"),
        (_loop, "must be a"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_one_bad_image_among_good_ones_is_found_and_named(
    write_questions: Write, images: Path, make: Callable[[Path], str], rule: str
) -> None:
    """Every image is resolved and decoded before anything runs; the message names the record."""
    file = write_questions([a_record(image="good.png"), a_record(id="culprit", image=make(images)), a_record()])

    with pytest.raises(BadInput, match=rf"^record 1 \(id 'culprit'\) .*{rule}"):
        load_questions(file, images)


@pytest.mark.parametrize("pixels", [1199, 500])
def test_an_image_over_pillows_pixel_limit_is_refused(
    write_questions: Write, images: Path, monkeypatch: pytest.MonkeyPatch, pixels: int
) -> None:
    """Also in the range where Pillow itself only warns; at the limit it still passes."""
    file = write_questions([a_record(image="good.png")])  # 40 x 30 pixels
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1200)
    load_questions(file, images)

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels)
    with pytest.raises(BadInput, match=f"an image must have at most {pixels} pixels, got 'good.png'"):
        load_questions(file, images)


def test_links_and_detours_inside_the_folder_are_fine(write_questions: Write, images: Path) -> None:
    """A name counts by where it ends up, not how it gets there."""
    (images / "sub").mkdir()
    (images / "link.png").symlink_to("good.png")
    names = ["link.png", "sub/../good.png", "./good.png"]

    loaded = load_questions(write_questions([a_record(image=name) for name in names]), images)

    assert {question.image for question in loaded} == {(images / "good.png").resolve()}


@pytest.mark.parametrize("folder", ["missing", "questions.json", None])
def test_images_need_an_image_folder(write_questions: Write, tmp_path: Path, folder: str | None) -> None:
    """A record with an image and no folder to look in is refused; text-only records need none."""
    where = None if folder is None else tmp_path / folder

    with pytest.raises(BadInput, match="image folder"):
        load_questions(write_questions([a_record(), a_record(image="good.png")]), where)
    assert len(load_questions(write_questions([a_record()]), where)) == 1


def test_chunks_are_the_originals(golden: dict[str, Any]) -> None:
    """Sizes and boundaries of every golden split."""
    for case in golden["split_list"]:
        items = [Question(str(index), "") for index in range(case["n_items"])]
        chunks = [chunk(items, case["n_chunks"], index) for index in range(case["n_chunks"])]

        assert [len(each) for each in chunks] == case["chunk_lengths"]
        assert [[int(each[0].id), int(each[-1].id)] for each in chunks] == case["get_chunk"]


@pytest.mark.parametrize(
    ("count", "chunks", "sizes"),
    [(6, 3, [2, 2, 2]), (3, 5, [1, 1, 1, 0, 0]), (10, 7, [2] * 5 + [0, 0]), (0, 2, [0, 0])],
)
def test_every_question_is_in_one_chunk(count: int, chunks: int, sizes: list[int]) -> None:
    """Also where the division is even, and where chunks past the end are left empty, which is no error."""
    items = [Question(str(index), "") for index in range(count)]

    split = [chunk(items, chunks, index) for index in range(chunks)]

    assert [len(each) for each in split] == sizes
    assert [question for each in split for question in each] == items


@pytest.mark.parametrize(("chunks", "index"), [(0, 0), (-2, 0), (3, 3), (3, -1), (1, 1)])
def test_chunks_that_do_not_exist_are_refused(chunks: int, index: int) -> None:
    """No chunks, or an index outside them."""
    with pytest.raises(BadInput, match="must be"):
        chunk([Question("1", "a")], chunks, index)


def test_embedded_questions_are_always_the_same_and_labelled() -> None:
    """Any count, each a beginning of the next; every label is one of the question's own options."""
    many = embedded_questions(45)

    assert embedded_questions(7) == many[:7]
    assert len({question.id for question in many}) == 45
    assert all(f"\n{question.label}. " in question.text for question in many)
    with pytest.raises(BadInput, match="at least 1, got 0"):
        embedded_questions(0)


def test_embedded_questions_are_mixed() -> None:
    """Text-only now and then; all five modes, a tiny, a wide, a tall and a large picture among the first 20."""
    questions = embedded_questions(20)
    pictures = [question.image for question in questions if isinstance(question.image, Drawing)]

    assert 1 <= sum(question.image is None for question in questions) <= 4
    assert {picture.mode for picture in pictures} == {"RGB", "L", "RGBA", "P", "CMYK"}
    assert {(1, 1), (96, 200), (500, 120), (640, 480)} <= {picture.size for picture in pictures}


def test_the_longest_embedded_question_comes_early(checkpoint: Checkpoint) -> None:
    """In tokens, no later question is longer than the longest of the first 20, and that one has an image."""
    prompts = Prompts(checkpoint.tokenizer, checkpoint.config)
    questions = embedded_questions(60)
    lengths = [len(prompts.ids(question)) for question in questions]

    assert max(lengths[20:]) <= max(lengths[:20])
    assert questions[lengths.index(max(lengths))].image is not None
    assert max(lengths) > 1.5 * min(lengths)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real questions lie beside the checkout, not in it")
def test_real_questions_load() -> None:
    """The 200 real ScienceQA records pass every check."""
    assert len(load_questions(SHARED / "questions-200.json", SHARED / "images")) == 200
