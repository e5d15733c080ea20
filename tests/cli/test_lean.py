"""`codex-pool doctor --lean`: its arithmetic and table, and one measurement of real app-servers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from programs import codex_pool as command

from codex_pool_cli.doctor import doctor
from codex_pool_cli.lean import measure, switches, table
from codex_pool_cli.lean.savings import Figures, saving
from codex_pool_cli.lean.switches import Switch

MIB = 1 << 20
SET = Switch("snapshot", ("-c a=false",), "a shell", ("a=true",), is_set=True)
SKILLS = Switch("skills", ("-c b=false",), "skills", ("b=false",))
ROOTS = Switch("roots", ("SSL_CERT_FILE=/one",), "trust", env={"SSL_CERT_FILE": "/one"})


def rounds(*cpu_ms: float, memory: int = 100 * MIB, start_ms: float = 200.0) -> list[Figures]:
    return [Figures(each, memory, start_ms) for each in cpu_ms]


def test_a_saving_is_the_median_of_the_rounds() -> None:
    found = saving([40.0, 80.0, 50.0], [20.0, 20.0, 40.0])
    assert (found.amount, found.part, found.is_clear) == (20.0, 0.5, True)


@pytest.mark.parametrize(
    ("without", "with_switch", "is_clear"),
    [
        ([40.0, 40.0, 40.0], [36.0, 37.0, 38.0], True),
        ([40.0, 40.0, 40.0], [44.0, 43.0, 42.0], True),
        ([40.0, 40.0, 40.0], [30.0, 30.0, 41.0], False),
        ([40.0, 40.0, 40.0], [39.5, 39.5, 39.5], False),
        ([40.0, 40.0], [20.0, 20.0], False),
        ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0], False),
    ],
)
def test_a_saving_is_clear_when_all_rounds_agree(
    without: list[float], with_switch: list[float], is_clear: bool
) -> None:
    assert saving(without, with_switch).is_clear is is_clear


def test_the_table_has_what_is_saved_and_what_is_given_up() -> None:
    measured = {
        "base": rounds(40, 40, 40),
        "snapshot": rounds(160, 160, 160, memory=125 * MIB),
        "skills": rounds(30, 30, 50),
        "roots": rounds(20, 20, 20, start_ms=250.0),
    }
    lines = table.lines_of("base", [SET, SKILLS, ROOTS], measured)
    by_first = [line.split() for line in lines if line[:5] in ("snaps", "skill", "roots")]
    assert by_first[:3] == [
        ["snapshot", "*", "120", "ms", "(75", "%)", "25", "MiB", "(20", "%)", "~0", "a", "shell"],
        ["skills", "~0", "~0", "~0", "skills"],
        ["roots", "20", "ms", "(50", "%)", "~0", "-50", "ms", "(-25", "%)", "trust"],
    ]
    # What the pool sets by itself is not among what is yours to set.
    assert by_first[3:] == [["skills", "-c", "b=false"], ["roots", "SSL_CERT_FILE=/one"]]
    assert "40 ms of CPU" in lines[0] and max(map(len, lines)) <= 120


def test_few_rounds_are_said_to_prove_little() -> None:
    lines = table.lines_of("base", [SKILLS], {"base": rounds(40), "skills": rounds(30)})
    assert "Fewer than 3 rounds prove little" in " ".join(lines)
    assert any("10 ms (25 %)?" in line for line in lines)


def test_options_stay_whole_where_lines_are_wrapped() -> None:
    many = Switch("many", tuple(f"-c features.feature_{number}=false" for number in range(30)), "")
    lines = table.lines_of("base", [many], {"base": rounds(40), "many": rounds(40)})
    options = [line[len("many  ") :] for line in lines if "features." in line]
    assert len(options) > 5 and all(line.startswith("-c features.") for line in options)
    assert " ".join(options) == " ".join(many.setting)


def test_json_has_parts_and_amounts() -> None:
    found = table.as_plain("base", [SET], {"base": rounds(40, 40, 40), "snapshot": rounds(160, 160, 160)})
    assert found["rounds"] == 3 and found["base"]["cpu_ms"] == 40
    (row,) = found["switches"]
    assert row["set_by_pool"] and row["given_up"] == "a shell" and row["setting"] == ["-c a=false"]
    assert row["saved"]["cpu_ms"] == {"amount": 120.0, "part": 0.75, "clear": True}


class Scripted(measure.Bench):
    """A bench on which an app-server takes so many seconds of a clock that only it moves."""

    def __init__(self, *seconds: float) -> None:
        self.switches = [SKILLS]
        self.now = 0.0
        self.order: list[str] = []
        self._seconds = iter(seconds)

    def all(self) -> dict[str, list[Figures]]:
        return measure.measure_all(self, lambda text: None, lambda: self.now)

    def measure(self, switch: Switch | None, turns: int = 0, limit_s: float = 0.0) -> Figures:
        took = next(self._seconds)
        self.now += min(took, limit_s)
        if took > limit_s:
            raise TimeoutError("too slow")
        self.order.append(switch.name if switch else "base")
        return Figures(1.0, 1, 1.0)


def test_rounds_take_turns() -> None:
    on = Scripted(*[1.0] * 10)
    assert [len(each) for each in on.all().values()] == [5, 5]
    assert on.order[:4] == ["base", "skills", "skills", "base"]


def test_no_round_begins_that_would_not_end_in_time() -> None:
    on = Scripted(*[15.0] * 10)
    assert [len(each) for each in on.all().values()] == [2, 2]
    assert on.now == 60.0


def test_a_round_that_takes_too_long_is_left_out() -> None:
    on = Scripted(10.0, 10.0, 10.0, 500.0)
    assert [len(each) for each in on.all().values()] == [1, 1]
    assert on.now == measure.LIMIT_S
    with pytest.raises(TimeoutError, match="too slow"):
        Scripted(10.0, 500.0).all()


def test_without_a_file_of_roots_the_others_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switches, "machine_bundle", lambda: None)
    assert [each.name for each in switches.switches(tmp_path)] == ["shell_snapshot", "no log", "skills", "tools", "app"]
    assert list(tmp_path.iterdir()) == []


def test_one_root_is_the_first_of_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "all.pem").write_text(
        "# text\n" + "".join(f"-----BEGIN CERTIFICATE-----\n{name}\n-----END CERTIFICATE-----\n" for name in "ABC")
    )
    text = switches.one_root(tmp_path / "all.pem", tmp_path).read_text()
    assert text.count("BEGIN") == 1 and "\nA\n" in text


def test_a_file_without_certificates_is_no_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty.pem").write_text("")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "empty.pem"))
    assert switches.machine_bundle() != tmp_path / "empty.pem"


def test_options_of_a_daemon_are_refused() -> None:
    done = CliRunner().invoke(doctor, ["--lean", "--connect", "default"])
    assert done.exit_code == 2 and "--connect: --lean measures this machine" in done.output


def test_a_binary_that_is_not_there_is_refused_before_anything_starts(tmp_path: Path) -> None:
    done = CliRunner().invoke(doctor, ["--lean", "--codex-bin", str(tmp_path / "codex")])
    assert done.exit_code == 3 and str(tmp_path / "codex") in done.output and "round" not in done.output


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_machine_is_measured_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home without config.toml, no account: it is neither used nor changed."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    home = tmp_path / "home"
    home.mkdir()
    done = command("doctor", "--lean", "--json", home=home, limit_s=150.0)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    saved = {each["name"]: each["saved"]["cpu_ms"] for each in found["switches"]}
    # A login shell for each thread is what costs most, on any machine.
    assert saved["shell_snapshot"]["part"] > 0.2
    assert found["rounds"] >= 1 and found["base"]["cpu_ms"] > 1 and found["base"]["memory_bytes"] > 10 * MIB
    assert done.stderr.startswith("round 1 of at most")
    assert list(home.iterdir()) == [] and list((tmp_path / "tmp").iterdir()) == []
