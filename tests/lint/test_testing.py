"""What the summary at the end of `make test` tells: of CI's output people are shown the end alone."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from freehold import testing
from freehold.progress import Phase

PLAYBOOK = """
TASK [etcd : Have the users] ***
ok: [data1]

TASK [etcd : Wait for the members] ***
fatal: [data2]: FAILED! =>
    msg: no leader after 30 s

PLAY RECAP ***
data2 : ok=1 changed=0 unreachable=0 failed=1 skipped=0
"""


@pytest.fixture(autouse=True)
def _logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(testing, "LOGS", tmp_path)


def complaint(script: str) -> str:
    """Return what the summary says of a command that failed."""
    result = testing.Check("it", ["sh", "-c", script]).run(Phase("test"))
    assert (result.passed, result.failed) == (0, 1)
    [(name, said)] = result.complaints
    assert name == "it"
    return said


def test_a_playbook_that_failed_is_told_with_its_task_and_its_message() -> None:
    """Its recap, which comes last, says neither."""
    said = complaint(f"cat <<'EOF'\n{PLAYBOOK}\nEOF\nexit 2")
    assert said.strip().startswith("TASK [etcd : Wait for the members]")
    assert "no leader after 30 s" in said


def test_any_other_command_that_failed_is_told_with_its_last_words() -> None:
    """A linter, for one, has its count there."""
    assert complaint("seq 1000; echo 3 violations; exit 1").endswith("3 violations\n")


def test_a_command_that_failed_without_a_word_is_a_failure_too() -> None:
    """It is not taken for one that passed."""
    assert complaint("exit 1") == "It said nothing."


def test_a_command_that_ended_well_has_passed() -> None:
    """And leaves nothing to tell of."""
    result = testing.Check("it", ["true"]).run(Phase("test"))
    assert (result.passed, result.failed, result.complaints) == (1, 0, [])


def test_a_patient_command_lets_all_others_go_first() -> None:
    """As linters beside servers whose answers are timed."""
    assert testing.Check("it", ["sh", "-c", "[ $(nice) = 19 ]"], is_patient=True).run(Phase("test")).passed == 1


def test_linters_run_beside_the_services_tests_and_all_else_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each of the two waits here until the other has begun; a third would break the order."""
    both = threading.Barrier(2, timeout=60)
    ran: list[str] = []

    def tier(name: str, _current: Phase, **_only: str) -> testing.Result:
        ran.append(name)
        if name in {"lint", "app"}:
            both.wait()
        return testing.Result(passed=1)

    for name in testing.TIERS:
        monkeypatch.setitem(testing.TIERS, name, partial(tier, name))
    monkeypatch.setattr(testing, "roles", partial(tier, "roles"))
    assert testing.run(testing.TIERS)
    assert set(ran[:2]) == {"lint", "app"}
    assert ran[2:] == ["roles", "system"]
    assert "4 passed, 0 failed, 0 skipped" in capsys.readouterr().out


def test_a_tier_whose_other_is_not_asked_for_runs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order in which they were asked for."""
    ran: list[str] = []

    def tier(name: str, _current: Phase) -> testing.Result:
        ran.append(name)
        return testing.Result(passed=1)

    for name in ("lint", "system"):
        monkeypatch.setitem(testing.TIERS, name, partial(tier, name))
    assert testing.run(["lint", "system"])
    assert ran == ["lint", "system"]


def test_a_tier_that_breaks_fails_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the next one still runs."""
    ran: list[str] = []

    def broken(_current: Phase) -> testing.Result:
        raise OSError("no space left")

    def whole(_current: Phase) -> testing.Result:
        ran.append("app")
        return testing.Result(passed=1)

    monkeypatch.setitem(testing.TIERS, "lint", broken)
    monkeypatch.setitem(testing.TIERS, "app", whole)
    assert not testing.run(["lint", "app"])
    assert ran == ["app"]


ENDS = """
import signal, sys
from pathlib import Path
from freehold import cli, testing
from freehold.progress import Phase

signal.signal(signal.SIGTERM, cli._end)
testing.LOGS = Path(sys.argv[1])
checks = [testing.Check(f"check {number}", ["sh", "-c", f"echo $$ > {sys.argv[1]}/{number}; exec sleep 60"]) for number in range(4)]
testing.run_checks(checks, Phase("test"))
"""


def test_a_run_that_is_ended_leaves_no_command_behind_and_begins_none(tmp_path: Path) -> None:
    """Neither those under way in other threads nor those that wait for them."""
    with subprocess.Popen([sys.executable, "-c", ENDS, str(tmp_path)], cwd=testing.ROOT) as run:
        for _ in range(100):
            if all((tmp_path / name).exists() and (tmp_path / name).read_text() for name in "01"):
                break
            time.sleep(0.1)
        started = [int((tmp_path / name).read_text()) for name in "01"]
        run.terminate()
        assert run.wait(20) == 143
    assert sorted(path.name for path in tmp_path.iterdir() if not path.suffix) == ["0", "1"]
    assert [number for number in started if Path(f"/proc/{number}").exists()] == []
