"""Which hosts come and which go where a tier is to have more or fewer."""

from __future__ import annotations

import fcntl
import json
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from freehold import playbooks
from freehold.fleet import ARRIVING, LEAVING, PRESENT, Fleet, FleetError, FleetHost, Place, resize
from freehold.lab import Lab
from tests.inventory.conftest import PREFIX, ROOT, run_playbook, variables

# As the lab's.
LAB = Place(
    "app",
    {"app1": "a", "app2": "b"},
    zones=("a", "b", "c"),
    network=f"{PREFIX}.64/26",
    taken=(f"{PREFIX}.65", f"{PREFIX}.66", "app1", "app2"),
)
STANDBY = Place(
    "app",
    {"app1": "a", "app2": "b"},
    standby=(FleetHost("spare1", "a", f"{PREFIX}.70"), FleetHost("spare2", "c", f"{PREFIX}.71")),
)


def host(number: int, zone: str, state: str = PRESENT) -> FleetHost:
    """Return an added host."""
    return FleetHost(f"app{number}", zone, f"{PREFIX}.{64 + number}", state)


def test_new_hosts_come_where_a_zone_has_fewest() -> None:
    """Each has a name and an address of its own."""
    assert resize([], 6, LAB) == [
        host(number, zone, ARRIVING) for number, zone in ((3, "c"), (4, "a"), (5, "b"), (6, "c"))
    ]


def test_hosts_go_where_a_zone_has_most_and_those_that_were_never_ready_first() -> None:
    """Declared ones stay."""
    there = [host(3, "c"), host(4, "a"), host(5, "b", ARRIVING)]
    left = resize(there, 3, LAB)
    assert [one.name for one in left if one.state == LEAVING] == ["app4", "app5"]
    with pytest.raises(FleetError, match="app1, app2 are declared, which never go: ask for 2 at least"):
        resize(there, 1, LAB)


def test_a_host_on_its_way_out_is_taken_back_before_a_new_one_is_made() -> None:
    """It is configured anew: nobody knows how far it came."""
    assert resize([host(3, "c", LEAVING)], 3, LAB) == [host(3, "c", ARRIVING)]


def test_the_same_number_again_changes_nothing() -> None:
    """What arrives and leaves goes on doing so."""
    there = [host(3, "c", ARRIVING), host(4, "a", LEAVING)]
    assert resize(there, 3, LAB) == there


def test_hosts_that_wait_are_taken_in_and_no_more_than_there_are() -> None:
    """Where no provider makes any."""
    assert [one.name for one in resize([], 3, STANDBY)] == ["spare2"]
    assert [one.name for one in resize([], 4, STANDBY)] == ["spare2", "spare1"]
    with pytest.raises(FleetError, match="1 more are asked for, and none is left to be had"):
        resize([], 5, STANDBY)


def test_what_came_is_there_and_what_went_is_forgotten(tmp_path: Path) -> None:
    """The record outlives the process, and what was added is not taken for declared."""
    fleet = Fleet(tmp_path)
    fleet.resize(4, LAB)
    assert fleet.settle("app", "app3") is True
    assert Fleet(tmp_path).hosts() == {"app": [host(3, "c"), host(4, "a", ARRIVING)]}
    fleet.settle("app", "app4")
    fleet.resize(3, replace(LAB, declared={**LAB.declared, "app3": "c", "app4": "a"}))
    fleet.settle("app", "app4")
    assert Fleet(tmp_path).hosts() == {"app": [host(3, "c")]}
    assert fleet.settle("app", "app3") is False


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Return a lab that has a state folder and nothing else."""
    lab = Lab(f"test-{secrets.token_hex(3)}")
    lab.state.mkdir(parents=True)
    yield lab
    shutil.rmtree(lab.state)


def test_every_playbook_knows_what_was_added(lab: Lab) -> None:
    """What arrives is of its tier already, what leaves is not any more."""
    added = [host(3, "c"), host(4, "a", ARRIVING), host(5, "b", LEAVING)]
    Fleet(lab.state).file.write_text(json.dumps({"app": [vars(one) for one in added]}), encoding="utf-8")
    command = ["ansible-inventory", "-i", "inventories/lab", "--list"]
    env = playbooks.environment(FREEHOLD_LAB=lab.name)
    told = json.loads(subprocess.run(command, capture_output=True, check=True, env=env, cwd=ROOT).stdout)
    assert told["app"]["hosts"] == ["app1", "app2", "app3", "app4"]
    assert told["fleet_arriving"]["hosts"] == ["app4"]
    assert told["fleet_leaving"]["hosts"] == ["app5"]
    # Ansible marks what is no template.
    known = {name: json.dumps(told["_meta"]["hostvars"][name]) for name in ("app3", "app5")}
    assert '"zone": {"__ansible_unsafe": "c"}' in known["app3"]
    assert f'"address": {{"__ansible_unsafe": "{PREFIX}.69"}}' in known["app5"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"app_hosts": "1"}, "app1, app2 are declared, which never go"),
        ({"app_hosts": "99"}, "app_hosts is `99`; give a whole number of at most 4 (fleet_hosts_max)"),
        ({"app_hosts": "3", "service": "orders-api", "replicas": "3"}, "app_hosts goes without service and replicas"),
    ],
)
def test_a_number_of_hosts_that_cannot_be_is_refused(asked: dict[str, str], said: str, tmp_path: Path) -> None:
    """Before anything changes, with what would be right."""
    given = tmp_path / "given.json"
    given.write_text(json.dumps(variables(tmp_path) | asked), encoding="utf-8")
    status, failures = run_playbook("ansible/scale.yml", ROOT / "inventories/lab", "-e", f"@{given}")
    assert status
    assert said in "\n".join(line for lines in failures.values() for line in lines)
    assert not Fleet(tmp_path).file.exists()


def test_of_two_playbooks_that_change_hosts_one_waits_and_says_for_whom(lab: Lab) -> None:
    """A scaling beside another, or beside site.yml, begins when that has ended, however it ended."""
    file = lab.state / "locks" / "playbook"
    file.parent.mkdir()
    command = ["ansible-playbook", "-i", "inventories/lab", "-e", "app_hosts=1", "ansible/scale.yml"]
    env = playbooks.environment(FREEHOLD_LAB=lab.name)
    with ExitStack() as processes:
        with file.open("w", encoding="utf-8") as held:
            fcntl.lockf(held, fcntl.LOCK_EX)
            held.write('{"playbook": "site.yml", "pid": 7, "since": "10:00:00"}')
            held.flush()
            waits = processes.enter_context(
                subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, cwd=ROOT
                )
            )
            assert waits.stdout is not None
            said = next(line for line in waits.stdout if line.startswith(("Waiting", "TASK")))
            assert said == "Waiting for site.yml, process 7, which changes these hosts since 10:00:00\n"
            # Looks, and changes nothing.
            looks = subprocess.run(
                [*command, "--check"], capture_output=True, text=True, check=False, env=env, cwd=ROOT
            )
            assert "never go" in looks.stdout
            assert waits.poll() is None
        assert "never go" in waits.stdout.read()


def test_an_inventory_that_reads_no_added_hosts_is_refused(tmp_path: Path) -> None:
    """They would be recorded, and no playbook would know them."""
    given = tmp_path / "given.json"
    given.write_text(json.dumps(variables(tmp_path) | {"app_hosts": 3}), encoding="utf-8")
    status, failures = run_playbook("ansible/scale.yml", ROOT / "inventories/example", "-e", f"@{given}")
    assert status
    assert "Name the host in the group app of its hosts.yml" in str(failures)
    assert not Fleet(tmp_path).file.exists()


def test_a_check_of_more_hosts_changes_nothing(lab: Lab) -> None:
    """It says what would come, and asks no host."""
    command = ["ansible-playbook", "-i", "inventories/lab", "-e", "app_hosts=3", "--check", "ansible/scale.yml"]
    env = playbooks.environment(FREEHOLD_LAB=lab.name)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=ROOT)
    assert done.returncode == 0, done.stdout
    assert "come: app3; go: none" in done.stdout
    assert not Fleet(lab.state).file.exists()
