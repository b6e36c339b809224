"""The programs under torchrun: real processes on one machine; without any, how reports become one result."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from llava.errors import BadInput
from llava.eval import custom_selection_inference, eval_scivqa, loop
from llava.eval.command_line import build_parser
from llava.eval.preparation import load_options
from llava.eval.ranks import Rank, RankReport, gather, line, read_report
from llava.eval.results import Answered
from llava.placement import placed
from tests.llava.forked import Forked
from tests.source import PYTHON_PATH

# A rank of torchrun with questions that need no model: `FATE` says what becomes of each rank.
SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from llava.eval.ranks import Rank
from llava.eval.results import Answered
from llava.eval.supervisor import supervise

FATE, SECONDS, QUESTIONS = {fate!r}, {seconds!r}, {questions!r}
rank = Rank.here(os.environ)
assert rank is not None
fate = FATE.get(rank.index)
if fate == "never starts":
    time.sleep(600)

def work(report):
    report.header(output=sys.argv[1], mode="baseline", model_config={{}}, device="cpu", timeout={timeout!r},
                  questions=[f"q{{place}}" for place in range(QUESTIONS)], digest="same")
    for count, place in enumerate(rank.share(QUESTIONS)):
        if count == 1:
            if fate == "fails":
                report.ended(1, "out of memory: tried to allocate 48.00 MiB")
                return 1
            if fate == "is killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if fate == "hangs":
                time.sleep(600)
            if fate == "loses its supervisor":
                file = rank.file(Path(sys.argv[1]))
                while not (file.exists() and '"place": ' in file.read_text()):
                    time.sleep(0.05)
                os.kill(os.getppid(), signal.SIGKILL)
        memory = {{"source": "CPU tensors", "peak_bytes": 1000 + rank.index}}
        try:
            time.sleep(SECONDS)
            report.answered(place, Answered(f"q{{place}}", f"A{{place}}", "A1", place == 1, 0.25, 2), memory)
        except KeyboardInterrupt:
            report.ended(130, "interrupted")
            return 130
    report.ended(0, "")
    return 0

sys.exit(supervise("p", rank, work))
"""

EARLIER = {"source": "CPU tensors", "peak_bytes": 1}  # memory of a run that is resumed


def _script(folder: Path, fate: dict[int, str], *, questions: int, seconds: float = 0.0, timeout: float = 60.0) -> str:
    path = folder / "script.py"
    text = SCRIPT.format(fate=fate, seconds=seconds, questions=questions, timeout=timeout)
    path.write_text(text, encoding="utf-8")
    return str(path)


BAD_USAGE = "eval-scivqa: error: argument --num-chunks: must be a whole number of at least 1, got '0'"


class Torchrun:
    """`torchrun --standalone --nproc-per-node PROCESSES ...` in a folder, forked, and so are the ranks it starts."""

    def __init__(self, server: socket.socket, folder: Path, processes: int, *argv: str) -> None:
        self._open = ExitStack()
        self._files = [self._open.enter_context((folder.parent / name).open("w+")) for name in ("out", "err")]
        options = ["--standalone", "--nproc-per-node", str(processes), *argv]
        stdout, stderr = (file.fileno() for file in self._files)
        self._process = Forked(server, "torch.distributed.run", options, folder, stdout=stdout, stderr=stderr)

    def terminate(self) -> None:
        os.kill(self._process.id, signal.SIGTERM)

    def finish(self) -> tuple[int, str, str]:
        """Its exit code, stdout and stderr."""
        code = self._process.wait()
        for file in self._files:
            file.seek(0)
        return code, *(file.read() for file in self._files)

    def end(self) -> None:
        """Close its files; kill it where a test has failed before its end."""
        self._process.end()
        self._open.close()


@pytest.fixture
def torchrun(server: socket.socket, tmp_path: Path) -> Iterator[Callable[..., Torchrun]]:
    """Starts Torchrun in `tmp_path`."""
    started: list[Torchrun] = []

    def start(processes: int, *argv: str) -> Torchrun:
        started.append(Torchrun(server, tmp_path, processes, *argv))
        return started[-1]

    yield start
    for each in started:
        each.end()


def _result(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _timeless(result: dict[str, Any]) -> dict[str, Any]:
    """All of a result that is no time and no measurement, checked to have those."""
    assert result.pop("avg_latency") > 0
    assert result.pop("avg_preparation") > 0
    assert result.pop("memory")["peak_bytes"] > 4_000_000  # tiny's weights alone
    for answer in result["answers"]:
        assert answer.pop("seconds") > 0
        assert answer.pop("preparation_seconds") > 0
        assert answer.pop("prefill_seconds") > 0
    return result


def _answers(result: dict[str, Any]) -> list[str]:
    return [answer["prediction"] for answer in result["answers"]]


def _check_shared(shared: dict[str, Any], single: dict[str, Any], ranks: int) -> None:
    """The same but for times and memory, keys in the same order; the worst rank's peak is the run's."""
    assert list(shared) == list(single)
    own = [rank["peak_bytes"] or 0 for rank in shared["memory"]["ranks"]]
    assert [rank["rank"] for rank in shared["memory"]["ranks"]] == list(range(ranks))
    assert shared["memory"]["peak_bytes"] == max(own) == own[shared["memory"]["worst_rank"]]
    assert json.dumps(_timeless(shared)) == json.dumps(_timeless(single))


class TestProgramsAsProcesses:
    def test_the_results_are_those_of_one_process(self, tmp_path: Path, torchrun: Callable[..., Torchrun]) -> None:
        """Two ranks, byte for byte but for times and memory: keys, order, answers, accuracy, what was drawn at random.
        The worst rank is named; there is one progress bar, one set of figures, and no file but the results."""
        argv = ["--num-samples", "8", "--output-file"]  # one of them is text-only, and draws no first index
        running = torchrun(2, "-m", "llava.eval.custom_selection_inference", *argv, "r.json")
        assert custom_selection_inference.main([*argv, str(tmp_path / "single.json")]) == 0
        code, out, err = running.finish()
        assert code == 0, err

        assert sorted(path.name for path in tmp_path.iterdir()) == ["r.json", "single.json"]
        _check_shared(_result(tmp_path / "r.json"), _result(tmp_path / "single.json"), 2)
        lines = out.splitlines()
        assert lines[0] == "CUSTOM TOKEN SELECTION TECHNIQUE WILL BE USED ------"
        assert [each.partition(":")[0] for each in lines[1:4]] == ["Model", "Mode", "The weights are random"]
        assert [each.partition(":")[0] for each in lines[5:]] == [
            "Avg Latency/Example", "FLOPs Ratio (attn+ffn approx)", "Questions answered", "Accuracy", "Average latency",
            "FLOPs of a prompt", "Peak memory", "Results"
        ]  # fmt: skip
        assert re.search(r"\(CPU tensors\), of rank \d, the worst of 2$", lines[11])
        assert set(re.findall(r"rank \d of \d", err)) == {"rank 0 of 2"}

    def test_more_ranks_than_questions(self, tmp_path: Path, torchrun: Callable[..., Torchrun]) -> None:
        """Four ranks, three questions, the second answered by an earlier run that was interrupted: the fourth rank has
        nothing to do, the results are those of one process, and the earlier answer is kept."""
        argv = ["--num-samples", "3", "--use-hmap-v", "--output-file"]
        assert eval_scivqa.main([*argv, str(tmp_path / "single.json")]) == 0
        single = _result(tmp_path / "single.json")
        single["answers"][1]["prediction"] = "as the earlier run answered"
        partial = single | {"complete": False, "answers": single["answers"][1:2], "memory": EARLIER}
        (tmp_path / "r.json").write_text(json.dumps(partial))
        code, _, err = torchrun(4, "-m", "llava.eval.eval_scivqa", "--resume", *argv, "r.json").finish()
        assert code == 0, err

        assert sorted(path.name for path in tmp_path.iterdir()) == ["r.json", "single.json"]
        shared = _result(tmp_path / "r.json")
        assert shared["memory"]["earlier"] == EARLIER | {"file": "r.json"}
        assert [rank["peak_bytes"] is None for rank in shared["memory"]["ranks"]] == [False, True, False, True]
        _check_shared(shared, single, 4)

    def test_bad_usage_is_said_once(self, tmp_path: Path, torchrun: Callable[..., Torchrun]) -> None:
        """A wrong flag: one line for all ranks, exit code not 0, nothing written."""
        code, _, err = torchrun(2, "-m", "llava.eval.eval_scivqa", "--num-chunks", "0").finish()

        assert code != 0
        assert re.findall("^eval-scivqa: error: .*", err, re.MULTILINE) == [BAD_USAGE]
        assert not list(tmp_path.iterdir())

    @pytest.mark.full
    def test_bad_usage_is_said_once_by_processes_of_their_own(self, tmp_path: Path) -> None:
        """The same where nothing is forked. Takes long, as torchrun and each rank import torch."""
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        run = subprocess.run(
            [*launcher, "-m", "llava.eval.eval_scivqa", "--num-chunks", "0"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": PYTHON_PATH, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

        assert run.returncode != 0
        assert re.findall("^eval-scivqa: error: .*", run.stderr, re.MULTILINE) == [BAD_USAGE]
        assert not list(tmp_path.iterdir())


class TestFailures:
    def test_the_others_finish_and_are_kept(self, tmp_path: Path, torchrun: Callable[..., Torchrun]) -> None:
        """One of five ranks runs out of memory, one hangs, one never starts, and rank 0, which gathers, is killed by
        SIGKILL: the fifth answers all its questions, what the others had is kept, and each is named with its rest.

        Takes long, as ranks are given up after 8 s."""
        fate = {0: "is killed", 1: "fails", 3: "hangs", 4: "never starts"}
        script = _script(tmp_path, fate, questions=20, seconds=0.2, timeout=8.0)
        code, out, err = torchrun(5, script, str(tmp_path / "r.json")).finish()
        assert code != 0

        result = _result(tmp_path / "r.json")
        assert not result["complete"]
        assert _answers(result) == ["A0", "A1", "A2", "A3", "A7", "A12", "A17"]  # in the order of the questions
        assert (result["total_samples"], result["correct_samples"]) == (7, 1)
        missing = {each["rank"]: (each["reason"], each["questions"]) for each in result["missing"]}
        assert list(missing) == [0, 1, 3, 4]
        assert missing[1] == ("out of memory: tried to allocate 48.00 MiB", ["q6", "q11", "q16"])
        assert missing[0] == ("killed by signal 9 (SIGKILL)", ["q5", "q10", "q15"])
        assert missing[3] == ("stopped: nothing heard of it for 8 s", ["q8", "q13", "q18"])
        assert missing[4] == ("lost: nothing heard of it for 8 s, not even once", ["q4", "q9", "q14", "q19"])
        assert [rank["peak_bytes"] for rank in result["memory"]["ranks"]] == [1000, 1001, 1002, 1003, None]
        assert result["memory"]["worst_rank"] == 3
        assert "p: error: rank 0: killed by signal 9 (SIGKILL); without an answer: q5, q10, q15\n" in err
        assert "Questions answered: 7\n" in out
        kept = read_report((tmp_path / "r.json.rank1-of-5.jsonl").read_text(encoding="utf-8"))
        assert list(kept.answers) == [1]

    def test_a_supervisor_is_killed(self, tmp_path: Path, torchrun: Callable[..., Torchrun]) -> None:
        """A process of torchrun's own dies by SIGKILL, torchrun says SIGTERM to the others: they finish all the same,
        what the dead rank reported is kept, and its other process does not outlive it."""
        script = _script(tmp_path, {1: "loses its supervisor"}, questions=8, seconds=0.8)
        started = time.monotonic()
        code, _, err = torchrun(2, script, str(tmp_path / "r.json")).finish()

        assert code != 0
        assert time.monotonic() - started < 50  # not the timeout
        result = _result(tmp_path / "r.json")
        assert _answers(result) == ["A0", "A1", "A2", "A4", "A6"], err
        assert result["missing"] == [
            {"rank": 1, "reason": "its supervisor was killed", "questions": ["q3", "q5", "q7"]}
        ]

    def test_a_run_that_is_stopped(self, tmp_path: Path, torchrun: Callable[..., Torchrun]) -> None:
        """A scheduler's SIGTERM, with nobody dead: soon over, with the answers so far of every rank."""
        script = _script(tmp_path, {}, questions=400, seconds=0.2)
        running = torchrun(2, script, str(tmp_path / "r.json"))
        files = [Rank(index, 2, index, 2, 0).file(tmp_path / "r.json") for index in range(2)]
        until = time.monotonic() + 100
        while not all(file.exists() and '"place": ' in file.read_text() for file in files):
            assert time.monotonic() < until
            time.sleep(0.1)
        running.terminate()
        code, *_ = running.finish()

        assert code != 0
        result = _result(tmp_path / "r.json")
        assert not result["complete"]
        assert {"A0", "A1"} <= set(_answers(result))
        assert result["total_samples"] < 200
        assert [each["reason"] for each in result["missing"]] == ["interrupted"] * 2


def _report(share: Sequence[int], *, count: int = 4, peak_bytes: int | None = 1000, **changes: Any) -> RankReport:
    """A rank that has answered `share` of `count` questions well."""
    header = {
        "mode": "himap", "model_config": {"a": 1}, "questions": [f"q{place}" for place in range(count)],
        "digest": "d", "device": "cpu",
    }  # fmt: skip
    answers = {place: Answered(f"q{place}", "A", "A", True, 0.5, 1) for place in share}
    memory = None if peak_bytes is None else {"source": "CPU tensors", "peak_bytes": peak_bytes}
    return RankReport(header | changes, answers, memory, 0)


class TestGather:
    def test_order_and_figures(self) -> None:
        """Answers stand in the order of the questions, and the averages are over all of them."""
        ranks = [_report([0, 2]), _report([1, 3])]
        ranks[1].answers[1] = Answered("q1", "B", "A", False, 1.5, 1)
        gathered = gather(ranks)
        result = gathered.as_json()

        assert gathered.code == 0
        assert [answer["id"] for answer in result["answers"]] == ["q0", "q1", "q2", "q3"]
        assert (result["complete"], result["accuracy"], result["avg_latency"]) == (True, 0.75, 0.75)
        assert "missing" not in result

    def test_the_worst_rank(self) -> None:
        """The highest peak and whose it is; a rank without a figure has none, and is not the worst by that."""
        ranks = [_report([0, 3], peak_bytes=None), _report([1], peak_bytes=7), _report([2], peak_bytes=5)]
        memory = gather(ranks).memory

        assert (memory["peak_bytes"], memory["worst_rank"]) == (7, 1)
        assert [rank["peak_bytes"] for rank in memory["ranks"]] == [None, 7, 5]
        nothing = gather([RankReport(reason="lost")]).memory
        assert (nothing["peak_bytes"], nothing["worst_rank"]) == (None, None)

    @pytest.mark.parametrize(
        ("codes", "code"),
        [((0, 0), 0), ((0, 1), 1), ((2, 2), 2), ((2, 1), 1), ((70, 1), 70), ((70, 130), 130), ((0, None), 1)],
    )
    def test_the_exit_code(self, codes: Sequence[int | None], code: int) -> None:
        """A lost rank counts as out of memory does; bad input is the run's only where nothing else failed."""
        ranks = [_report([0, 2]), _report([1, 3])]
        for rank, own in zip(ranks, codes, strict=True):
            rank.code = own
        assert gather(ranks).code == code

    def test_ranks_that_were_given_other_questions(self) -> None:
        """Nodes whose files differ: the rank that differs counts as failed, and none of its answers is taken."""
        gathered = gather([_report([0, 2]), _report([1, 3], digest="other")])

        assert gathered.code == 2
        assert [answer.id for answer in gathered.answers] == ["q0", "q2"]
        assert gathered.problems() == ["rank 1: its digest must be those of the other ranks; without an answer: q1, q3"]

    def test_a_share_that_is_short(self) -> None:
        """A rank that says all is well and left a question out is not believed."""
        gathered = gather([_report([0]), _report([1, 3])])

        assert gathered.code == 70
        assert [each.questions for each in gathered.missing] == [("q2",)]

    def test_a_line_that_was_cut_off(self) -> None:
        """A file that ends anywhere is read up to its last whole line."""
        whole = line(header={"mode": "m"}) + line(
            place=3, answer=vars(Answered("q", "A", None, None, 1.0, 1)), memory={}
        )
        last = line(place=7, answer=vars(Answered("q", "A", None, None, 1.0, 1)), memory={})

        for length in range(len(last) - 1):
            report = read_report(whole + last[:length])
            assert (report.header, list(report.answers), report.code) == ({"mode": "m"}, [3], None)

    def test_bad_input_of_all_writes_nothing(self) -> None:
        """As one process does: with answers, or another failure, there are results."""
        bad = RankReport(code=2, reason="no")
        assert not gather([bad, bad]).worth_writing
        assert gather([bad, bad]).problems() == ["no"]
        header = _report([]).header
        assert not gather([RankReport(header=header, code=2)]).worth_writing
        assert gather([RankReport(header=header, code=1)]).worth_writing


class TestRank:
    def test_shares(self) -> None:
        """Every question is one rank's; shares differ by at most one; the last may be empty."""
        for count, ranks in ((8, 2), (7, 4), (3, 4)):
            shares = [list(Rank(index, ranks, 0, 1, 0).share(count)) for index in range(ranks)]
            assert sorted(place for share in shares for place in share) == list(range(count))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1

    def test_without_torchrun(self) -> None:
        """Variables that other launchers set are not enough."""
        assert Rank.here({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost"}) is None

    def test_each_has_its_own_card(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The CUDA device of its number on its node, made current. One that was named is kept; too few are refused."""
        current: list[torch.device] = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "set_device", current.append)
        second, third = Rank(5, 8, 1, 4, 1), Rank(6, 8, 2, 4, 1)

        assert load_options(_options(), second)["device"] == torch.device("cuda:1") == current[0]
        assert load_options(_options("--device", "cuda"), second)["device"] == torch.device("cuda:1")
        assert load_options(_options("--device", "cuda:0"), second)["device"] == torch.device("cuda:0")
        assert load_options(_options("--device", "cpu"), third)["device"] == torch.device("cpu")
        assert load_options(_options(), None)["device"] == torch.device("cuda")
        with pytest.raises(BadInput, match="got cuda:2 with 2 CUDA devices"):
            load_options(_options(), third)


def _options(*argv: str) -> Any:
    return build_parser(eval_scivqa.PROGRAM).parse_args(argv)


class _Meter:
    def __init__(self, source: str, peak_bytes: int) -> None:
        self.source, self.peak_bytes = source, peak_bytes


class TestDeviceMap:
    def test_the_answers_are_the_same(self, tmp_path: Path) -> None:
        """`--device-map auto` loads by accelerate; the results say so and are the same otherwise."""
        pytest.importorskip("accelerate")
        results = []
        for name, argv in (("plain", []), ("map", ["--device-map", "auto", "--offload-folder", str(tmp_path)])):
            output = tmp_path / name
            assert eval_scivqa.main([*argv, "--num-samples", "2", "--output-file", str(output)]) == 0
            results.append(_timeless(_result(output)))

        assert results[1]["model_config"].pop("device_map") == "auto"
        assert results[0] == results[1]

    @pytest.mark.parametrize(
        ("argv", "rule"),
        [
            (["--device-map", "fast"], "must be one of auto, balanced, balanced_low_0, sequential"),
            (["--offload-folder", "."], "--offload-folder needs --device-map"),
        ],
    )
    def test_refused(self, argv: list[str], rule: str, capfd: pytest.CaptureFixture[str]) -> None:
        """One line, exit 2."""
        assert eval_scivqa.main(argv) == 2
        assert rule in capfd.readouterr().err

    def test_one_rank_a_node(self) -> None:
        """A map takes all cards: two ranks of a node would be in each other's way."""
        with pytest.raises(BadInput, match="a node has one rank, which takes all its cards, got 2"):
            load_options(_options("--device-map", "auto"), Rank(0, 2, 0, 2, 0))
        assert load_options(_options("--device-map", "auto"), Rank(0, 2, 0, 1, 0))["device_map"] == "auto"

    def test_every_card_is_measured(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """All cards of the map, not only the first; the fullest is named, with each one's figure."""
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        device = placed(device_map="auto").device
        model = type("Model", (), {"hf_device_map": {"a": 0, "b": torch.device("cuda:1"), "c": "cpu", "d": "disk"}})
        assert loop._devices(model, device) == ["cuda:0", "cuda:1"]

        meters: Any = {"cuda:0": _Meter("first", 5), "cuda:1": _Meter("second", 7)}
        assert loop._memory(meters) == {"source": "second", "peak_bytes": 7, "devices": {"cuda:0": 5, "cuda:1": 7}}
        assert loop._memory({"cuda:0": meters["cuda:0"]}) == {"source": "first", "peak_bytes": 5}
