"""Which hosts come and which go where a tier is to have more or fewer, or one has died."""

from __future__ import annotations

import fcntl
import json
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from freehold import playbooks
from freehold.fleet import ARRIVING, LEAVING, LOST, PRESENT, Fleet, FleetError, FleetHost, Place, resize
from freehold.follow import Follower, Step, Wanted, step
from freehold.lab import Lab
from freehold.progress import CommandError
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


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Return a lab that has a state folder and nothing else."""
    lab = Lab(f"test-{secrets.token_hex(3)}")
    lab.state.mkdir(parents=True)
    yield lab
    shutil.rmtree(lab.state)


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


def test_a_lost_host_is_not_taken_back_and_another_comes_in_its_place() -> None:
    """Under a name and an address of its own: the lost one may still have both."""
    there = [host(3, "c", LOST)]
    assert resize(there, 3, LAB) == [*there, host(4, "c", ARRIVING)]


def test_a_lost_host_is_recorded_and_forgotten_when_it_is_gone(tmp_path: Path) -> None:
    """As one that left."""
    fleet = Fleet(tmp_path)
    fleet.resize(4, LAB)
    for name in ("app3", "app4"):
        fleet.settle("app", name)
    fleet.lose("app", ["app3", "app1"])
    assert fleet.hosts() == {"app": [host(3, "c", LOST), host(4, "a")]}
    assert fleet.settle("app", "app3") is True
    assert fleet.hosts() == {"app": [host(4, "a")]}


DECLARED = ("app1", "app2")


@pytest.mark.parametrize(
    ("hosts", "dead", "added", "then"),
    [
        pytest.param(2, "", [], Step(2, needed=False), id="all there"),
        pytest.param(3, "", [], Step(3), id="one more"),
        pytest.param(2, "", [host(3, "c")], Step(2), id="one fewer"),
        pytest.param(3, "", [host(3, "c", ARRIVING)], Step(3), id="broken off while one came"),
        pytest.param(2, "", [host(3, "c", LEAVING)], Step(2), id="broken off while one went"),
        pytest.param(2, "", [host(3, "c", LOST)], Step(2), id="broken off while a dead one went"),
        pytest.param(1, "", [], Step(2, needed=False), id="declared ones stay whatever is recorded"),
        pytest.param(3, "app3", [host(3, "c")], Step(3, ("app3",)), id="a dead one is replaced"),
        pytest.param(3, "app3", [host(3, "c", ARRIVING)], Step(3), id="one that is not ready yet is not dead"),
        pytest.param(2, "app1", [], Step(3), id="one more for a dead one that never goes"),
        pytest.param(2, "app1", [host(3, "c")], Step(3, needed=False), id="one more is there for a dead one"),
        pytest.param(2, "app9", [], Step(2, needed=False), id="a dead one that nobody knows"),
    ],
)
def test_the_record_of_hosts_is_carried_out(hosts: int, dead: str, added: list[FleetHost], then: Step) -> None:
    """So many are recorded, one is dead, these were added."""
    assert step(Wanted(hosts, 4, "", frozenset({dead} - {""})), DECLARED, added) == then


@pytest.mark.parametrize("hosts", [2, 3])
def test_where_half_are_silent_or_more_no_host_comes_or_goes(hosts: int) -> None:
    """The network is more likely the cause: new hosts would not mend it, and the one in the place of a dead one may be all there is."""
    wanted = Wanted(hosts, 4, "", frozenset({"app1", "app2"}))
    found = step(wanted, DECLARED, [host(3, "c")])
    assert (found.number, found.needed, found.lost) == (3, False, ())
    assert "app1, app2 do not answer, half of all or more" in found.remark


def test_where_nobody_knows_which_hosts_are_dead_none_goes() -> None:
    """One may be in the place of a dead one; more may come."""
    there = [host(3, "c")]
    assert step(Wanted(2, 4, "", None), DECLARED, there) == Step(3, needed=False)
    assert step(Wanted(4, 4, "", None), DECLARED, there) == Step(4)


def test_of_two_dead_hosts_one_is_replaced_after_the_other() -> None:
    """Others are still there meanwhile."""
    there = [host(number, "c") for number in (3, 4, 5)]
    assert step(Wanted(5, 9, "", frozenset({"app3", "app4"})), DECLARED, there) == Step(5, ("app3",))


def test_dead_hosts_are_replaced_up_to_the_most_and_no_further() -> None:
    """A policy's bound is what its owner wants to pay."""
    found = step(Wanted(4, 4, "", frozenset({"app1"})), DECLARED, [host(3, "c"), host(4, "a")])
    assert (found.number, found.needed) == (4, False)
    assert "at most 4" in found.remark


def test_a_dead_host_that_waits_anew_is_left_alone() -> None:
    """No provider takes it away; it is lost until it answers."""
    there = [replace(STANDBY.standby[0], state=LOST)]
    wanted = Wanted(2, 4, "", frozenset())
    assert step(wanted, DECLARED, there, ["spare1"]).needed is False
    assert resize(there, 3, STANDBY)[-1].name == "spare2"
    # Where there is no other, it is tried: it may be back.
    assert resize(there, 4, STANDBY)[-1] == replace(there[0], state=ARRIVING)


@pytest.mark.parametrize(
    "told",
    [
        {"active": True, "tiers": {"app": {}}},
        {"active": True, "tiers": {"app": {"hosts": "3", "most": 4, "reason": "", "dead": []}}},
        {"active": True, "tiers": {"app": {"hosts": 3, "most": 4, "reason": "", "dead": [{}]}}},
        {"active": True},
    ],
)
def test_an_answer_of_another_form_is_none(told: dict[str, object]) -> None:
    """It is another host's, on which others run, too."""
    with pytest.raises((KeyError, ValueError)):
        Wanted.read(told)


def test_only_the_active_autoscaler_is_believed_and_no_sign_of_its_reason_moves_the_cursor() -> None:
    """Whoever reads it sits at a terminal."""
    tier = {"hosts": 3, "most": 4, "reason": "cpu\x1b[2J is high", "dead": ["app3"]}
    assert Wanted.read({"active": True, "tiers": {"app": tier}}) == Wanted(3, 4, "cpu[2J is high", frozenset({"app3"}))
    assert Wanted.read({"active": False, "tiers": {"app": tier}}) is None
    assert Wanted.read({"active": True, "tiers": {}}) is None


class Runs:
    """In place of Ansible: what scale.yml does to the record, where some hosts never become ready."""

    def __init__(self, fleet: Fleet, *, broken: str = "") -> None:
        self.fleet, self.broken, self.numbers = fleet, broken, list[int]()

    def __call__(self, _name: str, _inventory: str, _phase: object, log: Path, *arguments: str) -> None:
        """Run it once."""
        number = json.loads(arguments[1])["app_hosts"]
        self.numbers.append(number)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("", encoding="utf-8")
        self.fleet.resize(number, LAB)
        for one in self.fleet.hosts().get("app", []):
            if one.state == ARRIVING and one.name == self.broken:
                raise CommandError(["scale.yml"], 2, log, f"{one.name}: it is broken")
            self.fleet.settle("app", one.name)


@pytest.fixture
def follower(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Follower:
    """Return what follows for a lab of two declared hosts, whose dead ones answer nobody."""
    monkeypatch.setattr(Follower, "_read", lambda found: setattr(found, "declared", [*DECLARED]))
    monkeypatch.setattr(Follower, "_reached", lambda _found, _host: False)
    return Follower("lab", lab.state)


def go_round(
    follower: Follower, monkeypatch: pytest.MonkeyPatch, wanted: Wanted | None, at: float, runs: Runs | None = None
) -> None:
    """Have it compare once, at a time."""
    monkeypatch.setattr(follower, "_ask", lambda: wanted)
    monkeypatch.setattr("freehold.follow.time.monotonic", lambda: at)
    monkeypatch.setattr("freehold.follow.playbooks.run", runs)
    follower.round()


def test_a_host_that_is_never_ready_is_removed_and_another_tried_after_ever_longer_pauses(
    follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs each; what is there stays."""
    runs = Runs(follower.fleet, broken="app3")
    tried = []
    for at in range(0, 600, 3):
        before = len(runs.numbers)
        go_round(follower, monkeypatch, Wanted(3, 4, "", frozenset()), at, runs)
        tried += [at] * (len(runs.numbers) - before)
    assert runs.numbers[:3] == [3, 3, 2]
    assert tried == [0, 3, 3, 63, 66, 66, 186, 189, 189, 429, 432, 432]
    assert follower.fleet.hosts() == {}


def test_what_cannot_be_had_is_asked_for_ever_less_often(follower: Follower, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run has the environment's lock."""
    runs = Runs(follower.fleet)

    def refuses(*_: object) -> None:
        runs.numbers.append(0)
        log = follower.state / "scale.log"
        log.write_text("", encoding="utf-8")
        raise CommandError(["scale.yml"], 2, log, "none is left to be had")

    for at in range(0, 600, 3):
        go_round(follower, monkeypatch, Wanted(3, 4, "", frozenset()), at, refuses)  # type: ignore[arg-type]
    assert len(runs.numbers) == 8


def test_one_more_stays_for_a_while_after_a_declared_host_is_back(
    follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that starts again and again does not have others come and go."""
    runs = Runs(follower.fleet)
    for at, dead in ((0, {"app1"}), (100, set()), (200, {"app1"}), (300, set()), (490, set()), (510, set())):
        go_round(follower, monkeypatch, Wanted(2, 4, "", frozenset(dead)), at, runs)
    assert runs.numbers == [3, 2]
    assert follower.fleet.hosts() == {}


def test_a_host_that_answers_the_controller_is_not_replaced(
    follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever others say."""
    runs = Runs(follower.fleet)
    go_round(follower, monkeypatch, Wanted(3, 4, "", frozenset()), 0, runs)
    monkeypatch.setattr(follower, "_reached", lambda _host: True)
    go_round(follower, monkeypatch, Wanted(3, 4, "", frozenset({"app3", "app1"})), 10, runs)
    assert runs.numbers == [3]


def test_nothing_is_done_while_another_playbook_changes_hosts(
    follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Afterwards something else may be missing."""
    runs = Runs(follower.fleet)
    file = follower.state / "locks" / "playbook"
    file.parent.mkdir(exist_ok=True)
    holds = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'w'), fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", holds.replace("open(", "(f := open(").replace("'w')", "'w'))"), str(file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        go_round(follower, monkeypatch, Wanted(3, 4, "", frozenset()), 0, runs)
        assert runs.numbers == []
        holder.communicate()
    go_round(follower, monkeypatch, Wanted(3, 4, "", frozenset()), 3, runs)
    assert runs.numbers == [3]


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


def test_every_playbook_knows_what_was_added(lab: Lab) -> None:
    """What arrives is of its tier already, what leaves is not any more."""
    added = [host(3, "c"), host(4, "a", ARRIVING), host(5, "b", LEAVING), host(6, "c", LOST)]
    Fleet(lab.state).file.write_text(json.dumps({"app": [vars(one) for one in added]}), encoding="utf-8")
    command = ["ansible-inventory", "-i", "inventories/lab", "--list"]
    env = playbooks.environment(FREEHOLD_LAB=lab.name)
    told = json.loads(subprocess.run(command, capture_output=True, check=True, env=env, cwd=ROOT).stdout)
    assert told["app"]["hosts"] == ["app1", "app2", "app3", "app4"]
    assert told["fleet_arriving"]["hosts"] == ["app4"]
    assert told["fleet_leaving"]["hosts"] == ["app5", "app6"]
    assert told["fleet_added"]["hosts"] == ["app3", "app4", "app5", "app6"]
    # Ansible marks what is no template.
    known = {name: json.dumps(told["_meta"]["hostvars"][name]) for name in ("app3", "app5")}
    assert '"zone": {"__ansible_unsafe": "c"}' in known["app3"]
    assert f'"address": {{"__ansible_unsafe": "{PREFIX}.69"}}' in known["app5"]


def test_a_playbook_that_waited_knows_what_the_other_one_added(lab: Lab, tmp_path: Path) -> None:
    """Else it would take it out of the balancers again."""
    playbook = tmp_path / "site.yml"
    debug = [{"ansible.builtin.debug": {"msg": "here"}}]
    plays = [{"hosts": hosts, "gather_facts": False, "connection": "local", "tasks": debug} for hosts in ("all", "app")]
    playbook.write_text(yaml.safe_dump(plays), encoding="utf-8")
    file = lab.state / "locks" / "playbook"
    file.parent.mkdir()
    env = playbooks.environment(FREEHOLD_LAB=lab.name, ANSIBLE_STRATEGY="linear")
    with file.open("w", encoding="utf-8") as held:
        fcntl.lockf(held, fcntl.LOCK_EX)
        command = ["ansible-playbook", "-i", "inventories/lab", str(playbook)]
        waits = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, cwd=ROOT)
        assert waits.stdout is not None
        assert next(line for line in waits.stdout if line.startswith("Waiting"))
        Fleet(lab.state).file.write_text(json.dumps({"app": [vars(host(3, "c"))]}), encoding="utf-8")
    printed, _ = waits.communicate(timeout=60)
    assert "ok: [app3]" in printed
    assert waits.returncode == 0


# Without a policy.
FREE: dict[str, object] = {"topology_host_scaling": {}}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"app_hosts": "1", **FREE}, "app1, app2 are declared, which never go"),
        ({"app_hosts": "99", **FREE}, "app_hosts is `99`; give a whole number of at most 4 (fleet_hosts_max)"),
        ({"app_hosts": "1"}, "app_hosts is `1`; give a whole number of 2 to 4, the bounds of topology_host_scaling"),
        ({"app_hosts": "5"}, "app_hosts is `5`; give a whole number of 2 to 4"),
        ({"app_hosts": "3", "service": "orders-api", "replicas": "3"}, "app_hosts goes without service and replicas"),
        (
            {"postgres_replicas": "4"},
            "postgres_replicas is `4`; give a whole number of at most 3: -e postgres_replicas=NUMBER",
        ),
        ({"postgres_replicas": "-1"}, "postgres_replicas is `-1`; give a whole number of at most 3"),
        (
            {"postgres_replicas": "1", "app_hosts": "3"},
            "postgres_replicas goes without service, replicas and app_hosts",
        ),
    ],
)
def test_a_number_of_hosts_that_cannot_be_is_refused(asked: dict[str, object], said: str, tmp_path: Path) -> None:
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
            assert "give a whole number of 2 to 4" in looks.stdout
            assert waits.poll() is None
        assert "give a whole number of 2 to 4" in waits.stdout.read()


@pytest.fixture
def servers(tmp_path: Path) -> Path:
    """Return an inventory of servers that exist, two of which wait."""
    folder = tmp_path / "inventories" / "servers"
    shutil.copytree(ROOT / "inventories/example", folder)
    hosts = yaml.safe_load((folder / "hosts.yml").read_text(encoding="utf-8"))
    waiting = {
        name: {"zone": zone, "address": f"198.51.100.{number}", "memory_mb": 4096, "cpus": 2}
        for name, zone, number in (("spare1", "a", 70), ("spare2", "c", 71))
    }
    hosts["all"]["children"]["standby"] = {"hosts": waiting}
    (folder / "hosts.yml").write_text(yaml.safe_dump(hosts), encoding="utf-8")
    return folder


def scale_servers(servers: Path, **asked: object) -> tuple[str, Fleet]:
    """Ask for three app hosts, or for something else, of whom none is reached; return what was said, and the record."""
    state = servers.parents[1] / ".state" / "servers"
    state.mkdir(parents=True)
    given = servers.parents[1] / "given.json"
    nowhere = {"ansible_host": "127.0.0.1", "ansible_port": 1}
    given.write_text(json.dumps(variables(state) | nowhere | (asked or {"app_hosts": 3})), encoding="utf-8")
    _, failures = run_playbook("ansible/scale.yml", servers, "-e", f"@{given}")
    return str(failures), Fleet(state)


def test_of_servers_that_exist_one_that_waits_is_taken_in(servers: Path) -> None:
    """Where a zone has none; it is of the tier as soon as it is recorded."""
    _, fleet = scale_servers(servers)
    assert fleet.hosts() == {"app": [FleetHost("spare2", "c", "198.51.100.71", ARRIVING)]}
    command = ["ansible-inventory", "-i", str(servers), "--list"]
    env = playbooks.environment()
    told = json.loads(subprocess.run(command, capture_output=True, check=True, env=env, cwd=ROOT).stdout)
    assert told["app"]["hosts"] == ["app1", "app2", "spare2"]
    assert told["fleet_arriving"]["hosts"] == ["spare2"]


def test_a_read_replica_of_servers_that_exist_is_one_that_the_inventory_names(servers: Path) -> None:
    """Nobody makes hosts there; those that wait become app hosts."""
    said, fleet = scale_servers(servers, postgres_replicas=1)
    assert "put the read replica into the group replica of its hosts.yml, and run site.yml" in said
    assert not fleet.file.exists()


def test_more_hosts_than_can_be_had_are_not_recorded_for_the_autoscaler(servers: Path) -> None:
    """Its record is on hosts that nobody reaches here, so whoever asked them first would say that instead."""
    policy = {"min": 2, "max": 9, "metrics": [{"name": "replicas", "target": 3}]}
    said, fleet = scale_servers(servers, app_hosts=9, topology_host_scaling=policy)
    assert "and none is left to be had" in said
    assert not fleet.file.exists()


def test_an_inventory_that_reads_no_added_hosts_is_refused(servers: Path) -> None:
    """They would be recorded, and no playbook would know them."""
    (servers / "scaled.yml").unlink()
    said, fleet = scale_servers(servers)
    assert "a file scaled.yml with `plugin: added_hosts` beside its hosts.yml" in said
    assert not fleet.file.exists()


def test_an_inventory_that_reads_another_record_is_told_so(servers: Path) -> None:
    """The two places stand in different files."""
    (servers / "scaled.yml").write_text("plugin: added_hosts\nfolder: ../elsewhere\n", encoding="utf-8")
    said, _ = scale_servers(servers)
    assert "`folder` in its scaled.yml is to name the folder of topology_state_dir" in said


@pytest.mark.parametrize(("asked", "name"), [("app_hosts=3", "app3"), ("postgres_replicas=1", "replica1")])
def test_a_check_of_more_hosts_changes_nothing(asked: str, name: str, lab: Lab) -> None:
    """It says what would come, and asks no host."""
    command = ["ansible-playbook", "-i", "inventories/lab", "-e", asked, "--check", "ansible/scale.yml"]
    env = playbooks.environment(FREEHOLD_LAB=lab.name)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=ROOT)
    assert done.returncode == 0, done.stdout
    assert f"come: {name}; go: none" in done.stdout
    assert not Fleet(lab.state).file.exists()
