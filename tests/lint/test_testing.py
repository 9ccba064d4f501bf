"""What the summary at the end of `make test` tells: of CI's output people are shown the end alone."""

from __future__ import annotations

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
