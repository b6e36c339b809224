"""The programs that answer questions: bad usage, and runs that end early."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava.builder import Checkpoint
from llava.errors import BadInput
from llava.eval.results import write_json
from tests.llava.conftest import a_record
from tests.llava.programs.conftest import CUSTOM, EVAL, NAMES, PROGRAMS, Main, files_in, read_result


def test_chunks_and_samples(answered: Callable[..., None], workplace: Path) -> None:
    """The chunk is cut first, then the first samples of it; each chunk has its own file by default."""
    answered(*"AA")
    assert EVAL(["--num-chunks", "3", "--chunk-idx", "1", "--num-samples", "2"]) == 0

    assert files_in(workplace) == ["eval-scivqa-baseline-chunk-1-of-3.json"]
    answers = read_result("eval-scivqa-baseline-chunk-1-of-3.json")["answers"]
    assert [answer["id"] for answer in answers] == ["embedded-7", "embedded-8"]


def test_an_empty_chunk_is_a_complete_run(write_questions: Callable[..., Path]) -> None:
    """More chunks than questions: the last chunk answers nothing, and that is fine."""
    file = write_questions([a_record()])
    argv = ["--question-file", str(file), "--num-chunks", "3", "--chunk-idx", "2", "--output-file", "r.json"]
    assert EVAL(argv) == 0

    result = read_result("r.json")
    assert (result["complete"], result["accuracy"], result["avg_latency"], result["answers"]) == (True, None, None, [])


BAD_ARGUMENTS: list[tuple[Main, str, str]] = [
    (EVAL, "--num-chunks 0", "at least 1, got '0'"),
    (EVAL, "--num-chunks -3", "at least 1, got '-3'"),
    (CUSTOM, "--num-chunks two", "got 'two'"),
    (EVAL, "--chunk-idx -1", "at least 0, got '-1'"),
    (EVAL, "--num-chunks 2 --chunk-idx 2", "must be in 0..1, got 2"),
    (EVAL, "--num-samples 0", "at least 1, got '0'; -1 means all"),
    (EVAL, "--num-samples -2", "at least 1, got '-2'; -1 means all"),
    (EVAL, "--num-samples 1.5", "got '1.5'"),
    (EVAL, "--max-new-tokens 0", "at least 1, got '0'"),
    (EVAL, "--max-new-tokens 4097", "at most the model's context of 4096 tokens, got 4097"),
    (EVAL, "--max-new-tokens \u0661", "at least 1, got '\u0661'"),
    (EVAL, "--conv-mode llama_2", "'vicuna_v1', 'v1', 'llava_v1', 'plain'"),
    (CUSTOM, "--custom-selection-method kmeans", "'fps', 'tome'"),
    (EVAL, "--dtype int8", "'float32', 'float16', 'bfloat16', 'auto'"),
    (EVAL, "--attn fast", "'sdpa', 'eager', 'flash_attention_2'"),
    (EVAL, "--attn flash_attention_2 --device cpu", "needs a CUDA device"),
    (EVAL, "--device tpu", "auto, cpu, cuda or cuda:NUMBER, got 'tpu'"),
    (EVAL, "--device cuda:77", "must be there, got cuda:77"),
    (EVAL, "--nonsense 1", "unrecognized arguments"),
    (EVAL, "--question-file", "expected one argument"),
    (EVAL, "--baseline", "unrecognized arguments"),
    (EVAL, "--device cpu --device-map auto", "--device must not come with --device-map, got 'cpu' and 'auto'"),
    (EVAL, "--use-hmap-v --hmap-v-attn-txt-rank 65", "at most the 64 image tokens, got 65"),
    (EVAL, "--use-hmap-v --hmap-v-attn-txt-rank -1", "at least 0, got '-1'"),
    (EVAL, "--use-hmap-v --hmap-v-attn-img-rank 33", "at most hmap_v_attn_txt_rank, got 33 and 32"),
    (EVAL, "--use-hmap-v --hmap-v-attn-txt-layer 2 --hmap-v-attn-img-layer 2", "got 2 and 2"),
    (EVAL, "--use-hmap-v --hmap-v-attn-txt-layer 0", "at least 1, got '0'"),
    (EVAL, "--use-hmap-v --sys-length 1", "must be the"),
    (EVAL, "--use-hmap-v --sys-length -1", "at least 0, got '-1'"),
    (EVAL, "--use-hmap-v --img-length 576", "the model's 64 image tokens, got 576"),
    (CUSTOM, "--custom-temperature 0", "greater than 0, got '0'"),
    (CUSTOM, "--custom-temperature -0.1", "greater than 0, got '-0.1'"),
    (CUSTOM, "--custom-temperature nan", "greater than 0, got 'nan'"),
    (CUSTOM, "--custom-temperature inf", "greater than 0, got 'inf'"),
    (CUSTOM, "--custom-temperature 1_0", "greater than 0, got '1_0'"),
    (CUSTOM, "--custom-temperature hot", "greater than 0, got 'hot'"),
    (CUSTOM, "--custom-kept-tokens 0", "at least 1, got '0'"),
    (CUSTOM, "--custom-agg-layer -1", "at least 0, got '-1'"),
    (CUSTOM, "--custom-sys-length 3", "must be the"),
    (CUSTOM, "--custom-first-index -1", "at least 0, got '-1'"),
    (CUSTOM, "--custom-first-index 64", "below the 64 image tokens, got 64"),
    (CUSTOM, "--custom-image-token-length 3", "the model's 64 image tokens, got 3"),
    (EVAL, "--model-path nowhere", "must be an existing folder"),
    (EVAL, "--model-path 8b", "preset (tiny, 7b, 13b), got '8b'"),
    (EVAL, "--model-path .", "config.json"),
    (EVAL, "--model-base x", "a model base is for a projector"),
    (EVAL, "--device cpu --load-8bit", "loading in 8 bit needs a CUDA device"),
    (CUSTOM, "--device cpu --load-4bit", "loading in 4 bit needs a CUDA device"),
    (EVAL, "--load-4bit --load-8bit", "got both"),
    (EVAL, "--question-file missing.json", "question file must be readable"),
    (EVAL, "--question-file .", "question file must be readable"),
    (EVAL, "--image-folder .", "needs --question-file"),
    (EVAL, "--output-file missing/r.json", "must be in an existing folder"),
    (EVAL, "--output-file .", "must be a regular file"),
    (EVAL, f"--output-file {'n' * 300}", "must be writable"),
]


@pytest.mark.usefixtures("not_loaded")
@pytest.mark.parametrize(("main", "argv", "rule"), BAD_ARGUMENTS)
def test_bad_arguments_are_one_line(
    main: Main, argv: str, rule: str, workplace: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Exit 2, one line on stderr with the rule and what came, nothing written, no weights loaded."""
    assert main(argv.split()) == 2

    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"{NAMES[main]}: error: ")
    assert rule in printed.err
    assert printed.err.count("\n") == 1
    assert files_in(workplace) == []


@pytest.mark.usefixtures("not_loaded")
@pytest.mark.parametrize(
    ("record", "rule"),
    [
        ("no object", "must be an object"),
        (a_record(id=...), "must have an id"),
        (a_record(image="../work/x.png"), "must lie inside the image folder"),
        (a_record(image="bad\n\x1b[31m.png"), "must be an existing file"),
        (a_record(id="long", conversations=[{"from": "human", "value": "word " * 4096}]), "the context of 4096 tokens"),
    ],
)
def test_one_bad_record_stops_the_run_before_the_model_is_loaded(
    record: Any,
    rule: str,
    workplace: Path,
    images: Path,
    write_questions: Callable[..., Path],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Exit 2, one line without control characters, nothing written."""
    file = write_questions([a_record(image="good.png")] * 3 + [record])

    assert CUSTOM(["--question-file", str(file), "--image-folder", str(images)]) == 2

    error = capfd.readouterr().err
    assert rule in error
    assert error.count("\n") == 1
    assert "\x1b" not in error
    assert files_in(workplace) == []


@pytest.mark.usefixtures("not_loaded")
def test_images_without_a_folder_are_refused(
    write_questions: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    """A question file with images needs --image-folder."""
    assert EVAL(["--question-file", str(write_questions([a_record(image="good.png")]))]) == 2
    assert "needs an image folder" in capfd.readouterr().err


@pytest.mark.usefixtures("not_loaded")
def test_the_questions_are_never_overwritten(write_questions: Callable[..., Path]) -> None:
    """Results on top of the question file are refused, also by way of a link."""
    file = write_questions([a_record()])
    before = file.read_bytes()
    Path("link.json").symlink_to(file)

    for output in (str(file), "link.json"):
        assert EVAL(["--question-file", str(file), "--output-file", output]) == 2
    assert file.read_bytes() == before


def test_broken_weights_write_nothing(folder: Path, workplace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A fault that only loading can find is bad input too: exit 2, one line, nothing written."""
    weights = load_file(folder / "model.safetensors")
    del weights["language_model.lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    assert EVAL(["--model-path", str(folder)]) == 2

    error = capfd.readouterr().err
    assert "missing lm_head.weight" in error
    assert error.count("\n") == 1
    assert files_in(workplace) == []


@pytest.mark.share(3)
@PROGRAMS
@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 48.00 MiB.\nMore."),
            1,
            "Tried to allocate 48.00",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), 1, "out of memory"),
        (MemoryError(), 1, "out of memory"),
    ],
    ids=["ctrl-c", "cuda", "cpu", "python"],
)
def test_a_run_that_ends_early_writes_what_it_has(
    main: Main,
    error: BaseException,
    code: int,
    said: str,
    answered: Callable[..., None],
    workplace: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """On the third question: two answers written, marked incomplete; one line, no traceback."""
    answered("A", "B", error)
    Path("r.json").write_text("old")

    assert main(["--output-file", "r.json"]) == code

    result = read_result("r.json")
    assert (result["complete"], result["total_samples"], len(result["answers"])) == (False, 2, 2)
    assert result["memory"]["peak_bytes"] > 0
    lines = capfd.readouterr().err.splitlines()
    assert said in lines[-1]
    assert f"; 2 of 20 answers are in {Path('r.json').resolve()}, marked incomplete; --resume goes" in lines[-1]
    assert not any("Traceback" in line for line in lines)
    assert files_in(workplace) == ["r.json"]


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (torch.OutOfMemoryError("full"), 1)])
def test_a_run_that_ends_while_loading_says_so(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No answers yet: the results are there, empty and incomplete, and the peak is absent rather than 0."""

    def load(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(Checkpoint, "load_model", load)
    assert EVAL(["--output-file", "r.json"]) == code

    result = read_result("r.json")
    assert (result["complete"], result["answers"], result["accuracy"]) == (False, [], None)
    assert result["memory"] == {"source": None, "peak_bytes": None}


def test_a_fault_of_ours_shows_its_traceback(answered: Callable[..., None], capfd: pytest.CaptureFixture[str]) -> None:
    """Exit 70; what was answered is not lost."""
    answered("A", ZeroDivisionError("ours"))

    assert EVAL(["--output-file", "r.json"]) == 70

    assert "Traceback" in capfd.readouterr().err
    assert (read_result("r.json")["complete"], read_result("r.json")["total_samples"]) == (False, 1)


def test_results_are_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing that fails half-way leaves the old file as it was, and nothing beside it."""

    def full(self: Path, target: Path) -> None:
        raise OSError("disk full")

    path = tmp_path / "r.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"a": float("nan")})
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(BadInput, match=r"must be writable, got .*disk full"):
        write_json(path, {"a": 2})

    assert json.loads(path.read_text()) == {"a": 1}
    assert [each.name for each in tmp_path.iterdir() if each.is_file()] == ["r.json"]


@pytest.mark.usefixtures("not_loaded")
def test_a_device_is_never_replaced_by_a_file() -> None:
    """Results go by way of a rename, which would put a plain file in the place of a pipe or of /dev/null."""
    os.mkfifo("pipe")

    assert EVAL(["--output-file", "pipe"]) == 2
    assert Path("pipe").is_fifo()
