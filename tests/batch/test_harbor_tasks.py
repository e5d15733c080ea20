"""Tasks in Harbor's format as samples: what each key comes to, and what is refused, by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from codex_batch.dataset import DatasetError, Sample, load
from codex_batch.dataset.harbor_tasks import HarborOptions
from codex_batch.harbor.folder import read_folder, without_canary
from codex_batch.harbor.parse import TaskError, line_of, parse
from codex_batch.harbor.task import SCHEMAS, Artifact, Healthcheck, Task
from codex_batch.harbor.variables import UnsetVariable, values_of

pytestmark = pytest.mark.quick
EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "harbor"


def task(text: str, *ignored: str) -> Task:
    return parse(text, "task.toml", ignored=ignored)


def refused(text: str, *ignored: str) -> list[str]:
    with pytest.raises(TaskError) as caught:
        task(text, *ignored)
    return caught.value.problems


def samples(directory: Path, **options: object) -> list[Sample]:
    with load(directory, format="harbor", harbor=HarborOptions(**options)) as dataset:  # type: ignore[arg-type]
        return list(dataset)


# Schemas.


def test_the_examples_have_every_schema_and_are_read_as_they_are() -> None:
    found = {path.name: read_folder(path, oracle=True) for path in EXAMPLES.iterdir() if path.name[0] not in "._"}
    assert len(found) == 10
    assert {each.task.schema for each in found.values()} == set(SCHEMAS)
    hello = found["hello-file"]
    assert hello.prompts == ('Write the file /app/hello.txt with the one line "Hello, world!".\n',)
    assert hello.build is None and hello.task.environment.image is not None
    assert (hello.task.environment.cpus, hello.task.environment.memory_mb) == (1, 512)
    assert hello.task.steps[0].timeout_s == 120 and hello.task.steps[0].verifier.timeout_s == 60
    assert hello.task.metadata["difficulty"] == "easy"
    assert found["count-errors"].task.environment.memory_mb == 512
    assert found["as-user"].task.user == "worker" and found["as-user"].task.steps[0].verifier.user == "root"
    assert [each.environment.network for each in (one.task for one in found.values())] == [False] * 10
    steps = found["steps-final"].task.steps
    assert [step.name for step in steps] == ["build", "release"] and not found["steps-final"].task.is_mean
    assert [dict(step.min_reward) for step in steps] == [{"reward": 0.5}, {"reward": 1.0}]
    assert found["steps-final"].workdir_of(steps[0]) is None and found["steps-final"].workdir_of(steps[1]) is not None


@pytest.mark.parametrize("schema", SCHEMAS)
def test_each_schema_is_read_by_the_key_of_its_time_and_by_todays(schema: str) -> None:
    assert task(f'version = "{schema}"').schema == task(f'schema_version = "{schema}"').schema == schema


def test_a_schema_that_is_not_known_is_refused() -> None:
    (problem,) = refused('schema_version = "1.5"')
    assert problem == "task.toml:1: schema_version: is '1.5'; expected one of 1.0, 1.1, 1.2, 1.3, 1.4"
    assert task("").schema == "1.4"


# What keys come to.


def test_what_is_not_said_is_as_harbor_has_it() -> None:
    (step,) = task("").steps
    assert (step.timeout_s, step.verifier.timeout_s, step.min_reward) == (None, 600.0, {})
    assert step.artifacts == (Artifact("/logs/artifacts", "logs/artifacts"),)
    assert task("").environment.network


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("[environment]\nallow_internet = false", False),
        ("[environment]\nallow_internet = true", True),
        ('[environment]\nnetwork_mode = "no-network"', False),
        ('[environment]\nnetwork_mode = "public"\nallow_internet = false', True),
        ('[environment]\nnetwork_mode = "no-network"\n[agent]\nnetwork_mode = "no-network"', False),
    ],
)
def test_network(text: str, network: bool) -> None:
    assert task(text).environment.network is network


def test_a_step_takes_from_the_task_what_harbor_lets_it_take() -> None:
    found = task(
        """
        artifacts = ["/a"]
        [agent]
        timeout_sec = 5
        [verifier]
        timeout_sec = 7
        user = 1000
        env = { A = "1", B = "2" }
        [[steps]]
        name = "one"
        [[steps]]
        name = "two"
        artifacts = [{ source = "b/c" }]
        [steps.agent]
        timeout_sec = 6
        [steps.verifier]
        timeout_sec = 8
        user = "root"
        env = { B = "3" }
        [steps.healthcheck]
        command = "true"
        interval_sec = 1
        """
    )
    one, two = found.steps
    assert found.is_mean and found.has_steps
    # The limit of a verifier is that of the step, or 600 s: not the task's.
    assert (one.timeout_s, one.verifier.timeout_s, one.verifier.user) == (5, 600, "1000")
    assert (two.timeout_s, two.verifier.timeout_s, two.verifier.user) == (6, 8, "root")
    assert one.verifier.environment == {"A": "1", "B": "2"} and two.verifier.environment == {"A": "1", "B": "3"}
    assert [each.source for each in two.artifacts] == ["/logs/artifacts", "/a", "b/c"]
    assert two.healthcheck == Healthcheck("true", interval_s=1)


def test_metadata_may_hold_what_json_has_not() -> None:
    assert task("[metadata]\nday = 2026-01-02\nlist = [{ at = 10:00:00 }]").metadata == {
        "day": "2026-01-02",
        "list": [{"at": "10:00:00"}],
    }


@pytest.mark.parametrize(("size", "megabytes"), [("2G", 2048), ("512M", 512), ("1.5g", 1536), (" 2048 K ", 2)])
def test_sizes_of_old_schemas(size: str, megabytes: int) -> None:
    assert task(f'[environment]\nmemory = "{size}"').environment.memory_mb == megabytes


# What is refused.


@pytest.mark.parametrize(
    ("text", "where", "key"),
    [
        ("[environment]\ngpus = 1", 2, "environment.gpus"),
        ('[environment]\ngpu_types = ["H100"]', 2, "environment.gpu_types"),
        ('[environment.tpu]\ntype = "v6e"\ntopology = "2x4"', 1, "environment.tpu"),
        ("[environment]\nstorage_mb = 10240", 2, "environment.storage_mb"),
        ('[environment]\nstorage = "10G"', 2, "environment.storage"),
        ('[environment]\nskills_dir = "/skills"', 2, "environment.skills_dir"),
        ('[environment]\nos = "windows"', 2, "environment.os"),
        ('[[environment.mcp_servers]]\nname = "m"\nurl = "http://m"', 1, "environment.mcp_servers"),
        ('[environment]\nallowed_hosts = ["example.com"]', 2, "environment.allowed_hosts"),
        ('[verifier]\nenvironment_mode = "separate"', 2, "verifier.environment_mode"),
        ("[verifier.environment]\ncpus = 1", 1, "verifier.environment"),
        ('[[verifier.collect]]\ncommand = "dump"', 1, "verifier.collect"),
        ('multi_step_reward_mode = "mean"', 1, "multi_step_reward_mode"),
        ('artifacts = [{ source = "/a", exclude = ["*.o"] }]', 1, "artifacts.exclude"),
        ('artifacts = [{ source = "/a", service = "db" }]', 1, "artifacts.service"),
        ('[agent]\nnetwork_mode = "no-network"', 2, "agent.network_mode"),
        ('[verifier]\nnetwork_mode = "no-network"', 2, "verifier.network_mode"),
        ('[[steps]]\nname = "a"\n[[steps]]\nname = "b"\n[steps.agent]\nuser = "x"', 6, "steps.agent.user"),
        ("[agent]\nmodel = 1", 2, "agent.model"),
        ("[enviroment]\ncpus = 1", 1, "enviroment"),
    ],
)
def test_a_key_that_is_not_supported_is_refused_by_name_unless_it_is_left_out(text: str, where: int, key: str) -> None:
    (problem,) = refused(text)
    assert problem.startswith(f"task.toml:{where}: ")
    assert problem.endswith(f"; take it out, or leave it out of account with --ignore-key {key}")
    # What it would have asked for is gone, and nothing else.
    assert task(text, key).environment.image is None


def test_a_key_that_asks_for_nothing_is_no_reason_to_refuse_a_task() -> None:
    text = (
        '[environment]\ngpus = 0\nmcp_servers = []\nos = "Linux"\n[verifier]\nenvironment_mode = "shared"\ncollect = []'
    )
    assert task(text) == task("")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[agent]\ntimeout_sec = 0", "2: agent.timeout_sec: is 0; expected a number of seconds above 0"),
        ("[agent]\ntimeout_sec = true", "2: agent.timeout_sec: is true; expected a number of seconds above 0"),
        ("[environment]\ncpus = nan", "2: environment.cpus: is nan; expected a number above 0"),
        ('[environment]\nworkdir = "app"', "2: environment.workdir: is 'app'; expected an absolute path"),
        (
            '[environment]\nmemory = "2 pounds"',
            "2: environment.memory: is '2 pounds'; expected a size such as 2G or 512M",
        ),
        (
            '[environment]\nmemory = "2G"\nmemory_mb = 1',
            "2: environment.memory: is 2G, and memory_mb is 1; expected one of them",
        ),
        (
            '[environment]\nnetwork_mode = "allowlist"',
            "2: environment.network_mode: is 'allowlist'; expected no-network or public: an allowlist of hosts is not "
            "supported",
        ),
        (
            "[verifier]\nenv = { A = 1 }",
            "2: verifier.env: is {'A': 1}; expected a table of strings by the names of variables",
        ),
        ("agent = 1", "1: agent: is 1; expected a table"),
        ("[[steps]]\nmin_reward = 1", "1: steps[1].name: is missing; expected the name of a directory below steps/"),
        ('[[steps]]\nname = "../x"', "2: steps[1].name: is '../x'; expected the name of a directory below steps/"),
        (
            '[[steps]]\nname = "A"\n[[steps]]\nname = "a"',
            "4: steps[2].name: is 'a' as that of step 1; expected another",
        ),
        (
            'multi_step_reward_strategy = "mean"',
            "1: multi_step_reward_strategy: is for a task with [[steps]], which are missing",
        ),
        (
            'artifacts = ["../x"]',
            "1: artifacts: is ['../x']; expected a list of paths without '..', or tables with a source",
        ),
        ('artifacts = [{ destination = "x" }]', "1: artifacts[1].source: is missing; expected a path in the container"),
        (
            "[environment.healthcheck]\nretries = 1",
            "1: environment.healthcheck.command: is missing; expected a shell command",
        ),
        ('[task]\nname = "alone"', "2: task.name: is 'alone'; expected a name of the form ORG/NAME"),
    ],
)
def test_a_key_of_a_wrong_value_is_refused_and_cannot_be_left_out(text: str, problem: str) -> None:
    assert refused(text, "environment.network_mode", "agent.timeout_sec") == [f"task.toml:{problem}"]


def test_all_that_is_wrong_is_said_at_once() -> None:
    assert len(refused("[environment]\ngpus = 1\ncpus = 0\n[agent]\nuser = -1")) == 3
    (problem,) = refused("a = [")
    assert problem.startswith("task.toml:1: not TOML: ")


def test_line_of_a_key_in_tables_and_lists_of_tables() -> None:
    text = "a = 1\n[b.c]\nd = 2\n[[e]]\nf = 1\n[[e]]\n[e.g]\nf = 2\nb.x = 1\n"
    assert [line_of(text, key) for key in ("a", "b.c", "b.c.d", "e[1].f", "e[2].g.f", "e[2].g.b.x", "z")] == [
        1,
        2,
        3,
        5,
        8,
        9,
        1,
    ]


# Folders.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(EXAMPLES / "sort-names", tmp_path / "tasks" / "sort-names"))


def problems(folder: Path, *, oracle: bool = False) -> list[str]:
    with pytest.raises(DatasetError) as caught:
        samples(folder.parent, oracle=oracle)
    return [problem.replace(str(folder), "TASK") for problem in caught.value.problems]


def test_a_task_of_several_containers_is_refused_by_name(folder: Path) -> None:
    (folder / "environment" / "docker-compose.yaml").write_text("services: {}")
    (problem,) = problems(folder)
    assert problem == (
        "TASK/environment/docker-compose.yaml: a task of several containers; expected environment/Dockerfile or a "
        "docker_image; use Harbor for it"
    )


@pytest.mark.parametrize(
    ("missing", "problem"),
    [
        ("instruction.md", "TASK/instruction.md: no such file; expected the prompt of the task"),
        ("tests/test.sh", "TASK: has no tests/test.sh; expected the script that writes the reward"),
        (
            "environment/Dockerfile",
            "TASK: has neither environment/Dockerfile nor environment.docker_image; expected one of them",
        ),
        ("task.toml", "TASK/task.toml: no such file; expected the description of a task"),
        ("solution/solve.sh", "TASK: has no solution/solve.sh; expected one for --oracle"),
    ],
)
def test_what_is_missing_in_a_folder(folder: Path, missing: str, problem: str) -> None:
    (folder / missing).unlink()
    assert problems(folder, oracle=True) == [problem]


def test_a_solution_is_needed_by_the_oracle_only(folder: Path) -> None:
    shutil.rmtree(folder / "solution")
    assert [sample.id for sample in samples(folder.parent)] == ["sort-names"]


@pytest.mark.parametrize(
    "name", ["instruction.md", "tests", "tests/test.sh", "solution/solve.sh", "environment/Dockerfile", "task.toml"]
)
def test_what_is_read_by_a_link_out_of_the_task_is_refused(folder: Path, name: str) -> None:
    elsewhere = folder.parent.parent / "elsewhere"
    (folder / name).rename(elsewhere)
    (folder / name).symlink_to(elsewhere)
    assert problems(folder, oracle=True) == [
        f"TASK/{name}: is a link that leads out of the task; put what it leads to in its place"
    ]


def test_links_that_stay_in_the_task_and_those_of_the_container_are_taken(folder: Path) -> None:
    (folder / "tests" / "python").symlink_to("/usr/bin/python3")
    (folder / "instruction.md").rename(folder / "README.md")
    (folder / "instruction.md").symlink_to("README.md")
    assert [sample.id for sample in samples(folder.parent)] == ["sort-names"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "TASK/instruction.md: is empty; expected the prompt of the task"),
        (b" \r\n", "TASK/instruction.md: is empty; expected the prompt of the task"),
        (b"D\xe9j\xe0 vu", "TASK/instruction.md: not UTF-8; expected the prompt of the task"),
    ],
)
def test_an_instruction_is_text(folder: Path, text: bytes, problem: str) -> None:
    (folder / "instruction.md").write_bytes(text)
    assert problems(folder) == [problem]


def test_files_of_windows_are_read(folder: Path) -> None:
    (folder / "instruction.md").write_bytes(b"\xef\xbb\xbfDo it.\r\n")
    (folder / "task.toml").write_bytes(b'\xef\xbb\xbfversion = "1.0"\r\n[agent]\r\ntimeout_sec = 5\r\n')
    (sample,) = samples(folder.parent)
    assert sample.prompts == ("Do it.\n",) and sample.timeout_s == 5


def test_a_task_that_is_nested_too_deep_is_refused(folder: Path) -> None:
    (folder / "task.toml").write_text("[metadata]\na = " + "[" * 5000 + "]" * 5000)
    (problem,) = problems(folder)
    assert problem.startswith("TASK/task.toml:1: cannot be read: ")


@pytest.mark.parametrize("name", ["trajectory.json", "tests/.harborignore"])
def test_files_by_which_harbor_would_do_something_else_are_refused(folder: Path, name: str) -> None:
    (folder / name).write_text("x")
    (problem,) = problems(folder)
    assert problem.startswith(f"TASK/{name}: ")


def test_a_task_of_harbor_that_is_read_as_another_folder_is_known(folder: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        load(folder.parent)
    assert caught.value.problems == [f"{folder}: is a task of Harbor; expected --format harbor for it"]


def test_everything_wrong_with_a_folder_is_said_at_once(folder: Path) -> None:
    (folder / "task.toml").write_text("[environment]\ngpus = 1\ncpus = 0\n")
    assert [problem.partition(" is ")[0] for problem in problems(folder)] == [
        "TASK/task.toml:2: environment.gpus:",
        "TASK/task.toml:3: environment.cpus:",
    ]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("<!-- Canary 1 -->\n# canary 2\n\n\nDo it.\n", "Do it.\n"),
        ("Do it.\n# canary\n", "Do it.\n# canary\n"),
        ("# A heading\nDo it.", "# A heading\nDo it."),
    ],
)
def test_marks_of_a_benchmark_are_not_shown_to_the_agent(text: str, kept: str) -> None:
    assert without_canary(text) == kept


def test_a_change_of_any_file_and_the_oracle_make_another_sample(folder: Path) -> None:
    (first,) = samples(folder.parent)
    (moved,) = samples(Path(shutil.copytree(folder, folder.parent.parent / "other" / "sort-names")).parent)
    (oracle,) = samples(folder.parent, oracle=True)
    (folder / "tests" / "test.sh").write_text("echo 1 > /logs/verifier/reward.txt")
    (changed,) = samples(folder.parent)
    assert first.digest == moved.digest
    assert len({first.digest, oracle.digest, changed.digest}) == 3


# Variables of the environment.


def test_a_variable_that_is_not_set_is_refused_when_the_task_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "task.toml").write_text(
        '[environment]\nenv = { A = "${UNSET_A}" }\n[verifier]\nenv = { B = "${SET_B}" }\n'
    )
    monkeypatch.delenv("UNSET_A", raising=False)
    monkeypatch.setenv("SET_B", "secret")
    assert problems(folder) == [
        "TASK/task.toml: environment.env: A is ${UNSET_A}, and the environment has no UNSET_A; set it, or give a "
        "default"
    ]
    monkeypatch.setenv("UNSET_A", "secret")
    (sample,) = samples(folder.parent)
    # It is looked up when it is used: a run does not hold it.
    assert "secret" not in str(sample.to_json())


def test_variables_refer_to_the_environment_of_the_run() -> None:
    written = {"A": "${X}", "B": "${Y:-b}", "C": "a ${X}", "D": "${Z:-}"}
    assert values_of(written, {"X": "x"}) == {"A": "x", "B": "b", "C": "a ${X}", "D": ""}
    with pytest.raises(UnsetVariable) as caught:
        values_of(written, {})
    assert str(caught.value) == "A is ${X}, and the environment has no X; set it, or give a default"
