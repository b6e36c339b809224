"""The workflows and the action: what they name is there, and they give away nothing. Their steps are run here."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vram import cli

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")

ROOT = Path(__file__).parents[2]
ACTION = ROOT / "action.yml"
FILES = sorted((ROOT / "ci").glob("github-*.yml"))
GUIDE = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
SHOWN = re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)
COMMAND = re.compile(r"(?<![\w./-])(?:ci|docs|tests)/[\w./-]*\w")
OPTION = re.compile(r"--(?:vram|model|junit)[\w-]*")

every_workflow = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)


def jobs(path: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    return found


def steps(path: Path) -> Iterator[dict[str, Any]]:
    if path == ACTION:
        yield from yaml.safe_load(path.read_text(encoding="utf-8"))["runs"]["steps"]
        return
    for job in jobs(path).values():
        yield from job["steps"]


def step(file: str, name: str) -> dict[str, Any]:
    return next(step for step in steps(ROOT / file) if step.get("name") == name)


def shell(script: str, folder: Path, programs: dict[str, str], **variables: str) -> str:
    """Run a step as GitHub does, with `programs` (name: a line of shell) in place of what it would call."""
    for name, line in programs.items():
        (folder / "bin").mkdir(exist_ok=True)
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / "bin" / name).chmod(0o755)
    known = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "RUNNER_TEMP": str(folder), **variables}
    (folder / "step.sh").write_text(script)
    done = subprocess.run(
        ["bash", "-e", "step.sh"],  # noqa: S607
        cwd=folder,
        env=known,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_there_are_two() -> None:
    """One for GPUs, one without."""
    assert [path.name for path in FILES] == ["github-cpu.yml", "github-gpu.yml"]


def test_they_are_what_github_reads(tmp_path: Path) -> None:
    """The workflows, that of `vram init` and the action fit GitHub's schemas, which check-jsonschema brings."""
    if shutil.which("check-jsonschema") is None:
        pytest.skip("check-jsonschema is not installed")
    assert cli.main(["init", str(tmp_path)]) == 0
    written = tmp_path / ".github" / "workflows" / "memory.yml"
    on_gpu = tmp_path / "gpu.yml"
    on_gpu.write_text(SHOWN[1])
    for schema, files in (("workflows", [*FILES, written, on_gpu]), ("actions", [ACTION])):
        command = ["check-jsonschema", "--builtin-schema", f"vendor.github-{schema}", *files]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_the_guide_shows_what_a_project_gets(tmp_path: Path) -> None:
    """The workflow that init writes, and the same for a GPU: at most 20 lines each; and every input of the action."""
    (tmp_path / "setup.py").touch()
    assert cli.main(["init", str(tmp_path)]) == 0
    assert SHOWN[0] == (tmp_path / ".github" / "workflows" / "memory.yml").read_text(encoding="utf-8")
    assert all(text.count("\n") <= 20 for text in SHOWN)
    for name, about in yaml.safe_load(ACTION.read_text(encoding="utf-8"))["inputs"].items():
        default = about["default"]
        assert f"| `{name}` | {f'`{default}`' if default else 'none'} |" in GUIDE


def test_actionlint_finds_nothing() -> None:
    """Where it is installed; with shellcheck beside it, it reads the steps too. It knows no actions of one's own."""
    if shutil.which("actionlint") is None:
        pytest.skip("actionlint is not installed: https://github.com/rhysd/actionlint, a program, of no package")
    done = subprocess.run(["actionlint", *FILES], capture_output=True, text=True, check=False)  # noqa: S607
    assert done.returncode == 0, done.stdout


@every_workflow
def test_strangers_get_nothing(path: Path) -> None:
    """No trigger that hands a fork our token, no secret, no right that a job does not say it needs; actions are
    GitHub's own, pinned; and no text of a pull request is pasted into a script."""
    text = path.read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    assert set(workflow[True]) <= {
        "push",
        "pull_request",
        "schedule",
        "workflow_dispatch",
    }  # YAML reads the key `on` as true
    assert "secrets." not in text
    assert workflow["permissions"] == {}
    for name, job in jobs(path).items():
        assert job["timeout-minutes"] <= 90, name
        assert "permissions" in job, name
        if "write" in job["permissions"].values():
            assert not any("checkout" in step.get("uses", "") for step in job["steps"]), f"{name} runs their code"
    for each in [*steps(path), *steps(ACTION)]:
        assert re.fullmatch(r"\./|actions/[\w/-]+@(v\d+|[0-9a-f]{40})", each.get("uses", "./")), each
        assert "${{" not in each.get("run", ""), each
        if "checkout" in each.get("uses", ""):
            assert each["with"]["persist-credentials"] is False


def test_known_faults_of_pinned_packages_are_looked_up_each_night() -> None:
    """pip-audit checks every version that CI installs, and has a fixed version itself."""
    path = ROOT / "ci" / "github-cpu.yml"
    assert yaml.safe_load(path.read_text(encoding="utf-8"))[True]["schedule"]
    audit = jobs(path)["audit"]
    assert "github.event_name == 'schedule'" in audit["if"]
    (command,) = [step["run"] for step in audit["steps"] if "run" in step]
    assert re.search(r"pip-audit==[\d.]+ --requirement ci/constraints\.txt --no-deps", command)


@pytest.mark.parametrize(("event", "command"), [("schedule", "ci/test --full"), ("push", "ci/test")])
def test_each_night_runs_what_a_push_leaves_out(tmp_path: Path, event: str, command: str) -> None:
    """The step as GitHub runs it: `github.event_name == ...` is `true` or, by the `||`, empty."""
    tests = step("ci/github-cpu.yml", "Every check and test")
    assert tests["env"] == {"FULL": "${{ github.event_name == 'schedule' || '' }}"}
    (tmp_path / "ci").mkdir()
    (tmp_path / "ci" / "test").write_text('#!/bin/sh\necho "$0" "$@"\n')
    (tmp_path / "ci" / "test").chmod(0o755)
    assert shell(tests["run"], tmp_path, {}, FULL="true" if event == "schedule" else "") == f"{command}\n"


def test_our_machines_run_no_fork_and_one_job_a_gpu() -> None:
    """Self-hosted jobs are held back from forks, and wait for one another without being cancelled."""
    for job in jobs(ROOT / "ci" / "github-gpu.yml").values():
        if "self-hosted" in job["runs-on"]:
            assert "github.event.pull_request.head.repo.full_name == github.repository" in job["if"]
            assert job["concurrency"] == {
                "group": "vram-${{ matrix.gpu }}",
                "cancel-in-progress": False,
                "queue": "max",
            }


@every_workflow
def test_what_it_names_is_there(path: Path, pytestconfig: pytest.Config) -> None:
    """Files of this repository, options of the suite, and in the guide every variable and label."""
    text = path.read_text(encoding="utf-8")
    for name in COMMAND.findall(text):
        assert (ROOT / name).exists(), name
    for option in OPTION.findall(text + ACTION.read_text(encoding="utf-8")):
        pytestconfig.getoption(option)
    for word in [*re.findall(r"vars\.(\w+)", text), "accept-memory", path.name]:
        assert word in GUIDE, word


@every_workflow
def test_what_the_action_takes_is_what_it_is_given(path: Path) -> None:
    """Inputs that it has; its own name in each job, so that neither bases nor comments are mixed."""
    inputs = yaml.safe_load(ACTION.read_text(encoding="utf-8"))["inputs"]
    uses = [each for each in steps(path) if each.get("uses") == "./"]
    assert len(uses) == 1
    assert set(uses[0]["with"]) <= set(inputs)
    assert "name" in uses[0]["with"]
    (ours,) = (each for each in steps(ACTION) if each.get("name") == "Install vram where the job has not")
    assert ours["if"] == f"inputs.command == '{inputs['command']['default']}'"
    assert uses[0]["with"]["command"] != inputs["command"]["default"]


def test_the_pinned_torch_is_one_of_the_matrix() -> None:
    """The GPUs measure the package that users get."""
    pinned = re.search(r"^torch==(\S+)$", (ROOT / "ci" / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert pinned[1] in jobs(ROOT / "ci" / "github-gpu.yml")["gate"]["strategy"]["matrix"]["torch"]


@pytest.mark.parametrize("known", ["", "77"])
def test_one_comment_is_written_and_then_written_anew(tmp_path: Path, known: str) -> None:
    """With the Markdown of every job, a line where one measured nothing, and never longer than GitHub takes."""
    for name, text in (("h100-2.13.0", "peak **7 GiB**\n"), ("a100-2.13.0", None), ("z", "ü" * 40_000)):
        (tmp_path / "found" / f"memory-{name}" / "reports").mkdir(parents=True)
        if text is not None:
            (tmp_path / "found" / f"memory-{name}" / "reports" / "memory.md").write_text(text)
    shell(
        step("ci/github-gpu.yml", "Write it, or write it anew")["run"],
        tmp_path,
        {"gh": 'echo "$@" >> calls; case "$*" in *--paginate*) echo "$KNOWN" ;; esac'},
        COMMENTS="all",
        COMMENT="one",
        RUN="https://run",
        KNOWN=known,
    )
    calls = (tmp_path / "calls").read_text()
    written = (tmp_path / "comment.md").read_text(encoding="utf-8")
    assert ("--method PATCH one/77 --field body=@comment.md" in calls) == bool(known)
    assert ("--method POST all --field body=@comment.md" in calls) == (not known)
    assert written.startswith("<!-- GPU memory -->\n[Pages, snapshots and history](https://run)\n\n### a100-2.13.0\n")
    assert "### a100-2.13.0\n\nNothing was measured.\n" in written
    assert "### h100-2.13.0\n\npeak **7 GiB**" in written
    assert 59_990 < len(written.encode()) <= 60_000


LABELED = [{"id": 1, "name": "accept-memory", "description": "x"}]


@pytest.mark.parametrize(
    ("answer", "accepts"),
    [
        (json.dumps(LABELED), True),
        (json.dumps([{"name": "never-accept-memory", "description": "accept-memory"}]), False),
        (json.dumps([{"name": "bug"}, *LABELED], indent=1), True),
        ("[]", False),
        ("", False),  # nobody may read labels: the gate judges
    ],
)
def test_the_label_accepts_and_no_other(tmp_path: Path, answer: str, accepts: bool) -> None:
    """As GitHub answers: the step's output is set by exactly that label."""
    (tmp_path / "answer").write_text(answer)
    shell(
        step("action.yml", "Is the change meant?")["run"],
        tmp_path,
        {"curl": f'[ -s "{tmp_path}/answer" ] && cat "{tmp_path}/answer"', "python": f'exec "{sys.executable}" "$@"'},
        GH_TOKEN="token",  # noqa: S106
        LABEL="accept-memory",
        LABELS="https://labels",
        GITHUB_OUTPUT=str(tmp_path / "output"),
    )
    assert (tmp_path / "output").exists() == accepts


@pytest.mark.parametrize("accept", ["true", "false"])
@pytest.mark.parametrize("arguments", ["", "tests -k 'a or b' --model-path \"$MODEL\""])
def test_the_gate_accepts_where_it_is_told_to(tmp_path: Path, accept: str, arguments: str) -> None:
    """Forced, as CI has to; else it only judges. Arguments are words as in a shell."""
    printed = shell(
        step("action.yml", "Gate")["run"],
        tmp_path,
        {"gate": 'for each; do echo "$each"; done'},
        COMMAND="gate",
        ACCEPT=accept,
        ARGUMENTS=arguments,
        MODEL="a; model",
    )
    words = ["tests", "-k", "a or b", "--model-path", "a; model"] if arguments else []
    assert printed.splitlines() == words + ["--vram-accept-force"] * (accept == "true")


COMMENT = """
const known = JSON.parse(process.env.KNOWN)
const calls = []
const rest = {issues: {
  listComments: 'list',
  updateComment: async given => calls.push({update: given}),
  createComment: async given => calls.push({create: given}),
}}
const github = {rest, paginate: async (what, where) => known}
const context = {repo: {owner: 'o', repo: 'r'}, issue: {number: 7}}
;(async () => { SCRIPT
})().then(() => console.log(JSON.stringify(calls)))
"""
MARK = "<!-- vram: memory -->"


@pytest.mark.parametrize(
    ("known", "page", "call"),
    [
        ([], "**worse**: line 3\n", "create"),
        ([{"id": 5, "user": {"type": "Bot"}, "body": f"{MARK}\nold"}], "**worse**: line 3\n", "update"),
        ([{"id": 5, "user": {"type": "User"}, "body": f"{MARK}\nforged"}], None, "create"),
        ([{"id": 5, "user": {"type": "Bot"}, "body": "<!-- vram: memory-gpu -->\nanother"}], "x" * 70_000, "create"),
    ],
)
def test_one_comment_is_written_anew(tmp_path: Path, known: list[object], page: str | None, call: str) -> None:
    """The action's own comment of this gate, and nobody else's; never longer than GitHub takes; without a report it
    says so."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    if page is not None:
        (tmp_path / "reports").mkdir()
        (tmp_path / "reports" / "memory.md").write_text(page)
    (tmp_path / "comment.js").write_text(
        COMMENT.replace("SCRIPT", step("action.yml", "Write one comment, or write it anew")["with"]["script"])
    )
    variables = {"KNOWN": json.dumps(known), "NAME": "memory", "RUN": "https://run", "PATH": os.environ["PATH"]}
    done = subprocess.run(
        ["node", "comment.js"],  # noqa: S607
        cwd=tmp_path,
        env=variables,
        capture_output=True,
        text=True,
        check=True,
    )
    ((made, given),) = (next(iter(each.items())) for each in json.loads(done.stdout))
    assert made == call
    assert given.get("comment_id") == (5 if call == "update" else None)
    assert given["body"].startswith(f"{MARK}\n{(page or 'Nothing was measured.')[:1000]}")
    assert given["body"].endswith("[Page, snapshots and history](https://run)\n")
    assert len(given["body"]) < 65_536


def test_another_torch_leaves_the_checkout_clean(tmp_path: Path) -> None:
    """The pin is the job's, and the history does not call the commit changed."""
    (tmp_path / "ci").mkdir()
    (tmp_path / "ci" / "constraints.txt").write_text("tokenizers==1\ntorch==2.13.0\ntqdm==4\n")
    git = "git -c user.name=a -c user.email=a@b"
    shell(f"git init -q . && git add ci && {git} commit -q -m x", tmp_path, {})
    python = 'mkdir -p "$3/bin" && printf "#!/bin/sh\\necho pip \\"\\$@\\"\\n" > "$3/bin/pip" && chmod +x "$3/bin/pip"'
    printed = shell(
        step("ci/github-gpu.yml", "Install this job's torch, with CUDA")["run"],
        tmp_path,
        {"python": python},
        TORCH="2.11.0",
        TORCH_INDEX="https://index",
        GITHUB_ENV=str(tmp_path / "env"),
        GITHUB_PATH=str(tmp_path / "path"),
    )
    assert printed == "pip install --index-url https://index torch==2.11.0\n"
    assert (tmp_path / "ci" / "constraints.txt").read_text() == "tokenizers==1\ntorch==2.11.0\ntqdm==4\n"
    assert shell("git describe --always --dirty; git status --short ci", tmp_path, {}).count("\n") == 1
