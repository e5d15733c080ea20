"""The numbered examples and the notebook, run as a user runs them: on the real app-server and a loopback model."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from programs import environment

from codex_app_server.testing.loopback import (
    Attempts,
    Failed,
    Json,
    LoopbackModel,
    Rule,
    Script,
    Text,
    ToolCall,
    write_loopback_home,
)

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.relative_to(ROOT) for path in ROOT.glob("examples/[0-9]*/*.py"))
NOTEBOOK = Path("notebooks/sdk_walkthrough.ipynb")
RUNNER = Path(__file__).parents[1] / "harness" / "run_examples.py"
AT_ONCE = 3
LIMIT_S = 150

# What comes back, none of which stands in a prompt.
SCRIPT = Script(
    (
        Rule(Text("One, two, three and so on to sextant.", deltas=12, pace_ms=60), contains="Count from 1 to 50"),
        Rule(Text("It was quadrant."), contains="Stop counting"),
        Rule(Text("Astrolabe above the sea. " * 400, deltas=400, pace_ms=25), contains="very long poem"),
        Rule(
            ToolCall("echo hello > hello.txt", Text("Written by gnomon."), escalate=True),
            contains="the file hello.txt",
        ),
        Rule(Json({"title": "Along the alidade", "steps": ["out", "back"]}), contains="Plan a walk"),
        Rule(Json({"sentiment": "mixed", "score": 57, "topics": ["theodolite"]}), contains="Classify this review"),
        Rule(Attempts.of(Failed("server_is_overloaded"), Text("By sunlight and octant.")), contains="the sky blue"),
        Rule(Json({"city": "Port Almanac", "inhabitants": 4711}), contains="Invent a town"),
    ),
)
# The loopback model puts a checksum of the prompt into answers that no rule gives.
ANSWERED = r"This is the loopback model; checksum [0-9a-f]+"
PRINTED: dict[str, tuple[str, ...]] = {
    "02_turn_run": ("status: completed", "agentMessage", ANSWERED),
    "03_turn_stream_events": (ANSWERED, r"\[turn completed\]", ANSWERED),
    "04_models_and_metadata": (r"app-server: \S*/0\.163\.0", r"\* gpt-\S+ \(.*low"),
    "05_existing_thread": (r"My favourite number is 27\.", ANSWERED, "2 turns in"),
    "06_thread_lifecycle_and_controls": (
        ANSWERED,
        "named: colours",
        f"fork: .*{ANSWERED}",
        "compacted: completed",
        "archived: True",
        f"back: .*{ANSWERED}",
        "deleted: True",
    ),
    "10_error_handling_and_retry": (
        "attempt 1 failed: .*serverOverloaded",
        r"By sunlight and octant\.",
        "refused by the app-server: InvalidRequestError",
        "refused before it was sent: input is empty",
    ),
    "11_cli_mini_app": (f"codex> .*{ANSWERED}", "a new thread: ", f"codex> .*{ANSWERED}"),
    "12_turn_params": ("Along the alidade",),
    "13_model_select_and_turn_params": (r"model: gpt-\S+ effort: \w+", ANSWERED),
    "14_turn_controls": (r"steered: completed - It was quadrant\.", "interrupted: interrupted"),
    "15_approvals": (
        r"asked to run: .*hello\.txt.* -> accept",
        "command: completed 0",
        r"files: \['hello\.txt'\]",
        r"Written by gnomon\.",
    ),
    "16_login_and_account": ("nobody is logged in", ANSWERED),
    "17_structured_output": ("mixed 57 theodolite",),
    "notebooks": (ANSWERED, ANSWERED, "Port Almanac", "4711"),
}
STDIN = "Hello there.\n\n/new\nAnd hello again.\n"


class Outcome(NamedTuple):
    code: str
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Outcome]:
    """Every chosen program, run to its end, a few at a time: one by one they would take minutes."""
    module = request.node
    chosen = [item.callspec.params["path"] for item in request.session.items if _is_example(item, module)]
    directory = tmp_path_factory.mktemp("examples")
    with ExitStack() as stack:
        jobs = []
        for number, path in enumerate(chosen):
            work = directory / str(number)
            work.mkdir()
            (work / "stdin").write_text(STDIN)
            # Each with a model of its own: attempts are counted by prompt.
            model = stack.enter_context(LoopbackModel(SCRIPT))
            environ = environment(write_loopback_home(work / "home", model.base_url))
            jobs.append({"path": str(ROOT / path), "cwd": str(work), "environ": environ})
        (directory / "jobs").write_text(json.dumps(jobs))
        command = [sys.executable, "-W", "error", str(RUNNER), str(directory / "jobs"), str(AT_ONCE)]
        _run(command)
    done = {}
    for path, job in zip(chosen, jobs, strict=True):
        work = Path(str(job["cwd"]))
        done[path] = Outcome(*((work / name).read_text() for name in ("code", "stdout", "stderr")))
    shutil.rmtree(directory)
    return done


def _run(command: list[str]) -> None:
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        assert process.wait(LIMIT_S) == 0
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise


def _is_example(item: pytest.Item, module: pytest.Module) -> bool:
    return item.getparent(pytest.Module) is module and "outcomes" in getattr(item, "fixturenames", ())


@pytest.mark.real
@pytest.mark.timeout(LIMIT_S + 30)
@pytest.mark.parametrize("path", [*EXAMPLES, NOTEBOOK], ids=str)
def test_it_runs(path: Path, outcomes: dict[Path, Outcome]) -> None:
    done = outcomes[path]
    assert done.code == "0", done.stdout + done.stderr
    # In this order.
    patterns = PRINTED.get(path.parent.name, (ANSWERED,))
    assert re.search(".*".join(patterns), done.stdout, re.DOTALL), done.stdout + done.stderr
    assert done.stderr == ""


@pytest.mark.generate
@pytest.mark.timeout(LIMIT_S + 30)
def test_they_are_typed(tmp_path: Path) -> None:
    # All are called sync.py and async.py, which mypy takes for one module each.
    for path in EXAMPLES:
        shutil.copy(ROOT / path, tmp_path / f"_{path.parent.name}_{path.name}")
    flags = ["--strict", "--no-error-summary", "--python-version", "3.10", "--config-file", "", "--no-incremental"]
    command = [sys.executable, "-m", "mypy", *flags, *sorted(path.name for path in tmp_path.iterdir())]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_every_example_stands_in_the_index() -> None:
    index = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `([^`]+?)/?` \|", index, re.MULTILINE)
    assert {path.parent.name for path in EXAMPLES} == {name for name in listed if re.match(r"\d", name)}
    assert [name for name in listed if not (ROOT / "examples" / name).exists()] == []


def test_the_notebook_is_clean() -> None:
    notebook = json.loads((ROOT / NOTEBOOK).read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    cells = notebook["cells"]
    assert {cell["cell_type"] for cell in cells} == {"markdown", "code"}
    assert len({cell["id"] for cell in cells}) == len(cells)
    for cell in cells:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
