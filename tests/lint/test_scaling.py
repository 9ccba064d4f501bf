"""How many replicas and hosts the load asks for, how they change by steps and pauses, and on which hosts replicas are.

The rules are rendered as the role does it, of one service a promise, and promtool plays all of them in one run.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from freehold import prerequisites, testing
from freehold.progress import phase
from tests.inventory.conftest import ROOT, run_playbook

EVERY = 2  # seconds, of figures and rules
LONG = 100  # of them
HOSTS = ("app1", "app2", "app3")
AT_ONCE = {"window_seconds": 0}


def _module(path: str) -> ModuleType:
    """Return a file of a role as a module; what it imports of other roles is to be loaded before."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


scaling = _module("ansible/plugins/filter/scaling.py")
for imported in ("service_record", "service_host"):
    _module(f"roles/service/module_utils/{imported}.py")
autoscaler = _module("roles/autoscaler/files/autoscaler.py")
replicas = _module("roles/service/files/replicas.py")


def steady(value: float, count: int = LONG) -> str:
    """Return so many samples of a value, as promtool takes them."""
    return f"{value}+0x{count - 1}"


@dataclass(frozen=True)
class Promise:
    """What is promised, of a service of its own: its policy, what Prometheus sees of it, and what follows when.

    Load comes as requests under way in each replica, or as `depth`, the value of a query of the policy's own.
    """

    says: str
    then: Mapping[int, float | None]  # replicas at a time in seconds, None where there is no answer
    recorded: str = ""  # samples, as those below
    requests: Sequence[str] = ()  # of each replica
    cpu: Sequence[str] = ()  # of each replica, whether or not a metric asks for it
    rate: Sequence[str] = ()  # requests that each replica has had
    depth: str = ""
    query: str = "max({depth})"
    metrics: Sequence[str] = ("in_flight",)
    up: Mapping[str, int] = field(default_factory=dict)
    down: Mapping[str, int] = field(default_factory=lambda: AT_ONCE)
    figure: str = "freehold:replicas_target"

    def series(self, name: str) -> dict[str, str]:
        """Return what Prometheus has of the service: samples by series."""
        own = f'service="{name}"'
        found = {f"freehold_replicas_recorded{{{own}, instance={ops!r}}}": self.recorded for ops in ("ops1", "ops2")}
        found[f"depth{{{own}}}"] = self.depth
        for place, requests in enumerate(self.requests):
            labels = f"{own}, instance={HOSTS[place % len(HOSTS)]!r}, replica='{place // len(HOSTS) + 1}'"
            found[f"freehold_replica_in_flight{{{labels}}}"] = requests
            found[f"freehold_replica_cpu_seconds_total{{{labels}}}"] = self.cpu[place] if self.cpu else steady(0)
        for place, count in enumerate(self.rate):
            found[f"freehold_replica_requests_total{{{own}, instance={HOSTS[place % len(HOSTS)]!r}}}"] = count
        return {series.replace("'", '"'): samples for series, samples in found.items() if samples}

    def service(self, name: str) -> dict[str, Any]:
        """Return the entry of `services`."""
        targets = {"cpu": 0.5, "in_flight": 10, "rate": 100, "depth": 100}
        metrics: list[dict[str, Any]] = [{"name": metric, "target": targets[metric]} for metric in self.metrics]
        for metric in metrics:
            if metric["name"] == "depth":
                metric["query"] = self.query.format(depth=f'depth{{service="{name}"}}')
        policy = {"min": 1, "max": 20, "metrics": metrics, "up": dict(self.up), "down": dict(self.down)}
        return {"name": name, "hosts": "app", "cpus": 2.0, "scaling": policy}


PROMISES = [
    Promise(
        "requests a second count as the mean of the replicas",
        recorded=steady(2),
        requests=[steady(0)] * 2,
        rate=[f"0+{150 * EVERY}x{LONG}", f"0+{250 * EVERY}x{LONG}"],
        metrics=["rate"],
        then={20: 4},
    ),
    Promise(
        "more load asks for as many as there are, times value / target, rounded up",
        recorded=steady(3),
        requests=[steady(14)] * 3,
        then={20: 5},
    ),
    Promise("what is whole is not rounded up", recorded=steady(2), requests=[steady(15)] * 2, then={20: 3}),
    Promise(
        "the value is the mean of all replicas",
        recorded=steady(3),
        requests=[steady(0), steady(0), steady(42)],
        then={20: 5},
    ),
    Promise(
        "less load asks for fewer by the same rule",
        recorded=steady(6),
        requests=[steady(5.2)] * 6,
        then={20: 4},
    ),
    Promise(
        "processors count by what a replica may use",
        recorded=steady(3),
        requests=[steady(0)] * 3,
        cpu=[f"0+{1.4 * EVERY}x{LONG}"] * 3,
        metrics=["cpu"],
        then={20: 5},
    ),
    Promise(
        "one tenth above the target changes nothing",
        recorded=steady(12),
        requests=[steady(10.9)] * 12,
        then={20: 12},
    ),
    Promise(
        "one tenth below the target changes nothing",
        recorded=steady(12),
        requests=[steady(9.1)] * 12,
        then={20: 12},
    ),
    Promise("beyond a tenth above there are more", recorded=steady(12), requests=[steady(11.2)] * 12, then={20: 14}),
    Promise("beyond a tenth below there are fewer", recorded=steady(12), requests=[steady(8.8)] * 12, then={20: 11}),
    Promise(
        "of several metrics the greatest decides for more",
        recorded=steady(2),
        requests=[steady(1)] * 2,
        depth=steady(200),
        metrics=["in_flight", "depth"],
        then={20: 4},
    ),
    Promise(
        "of several metrics the greatest decides for fewer",
        recorded=steady(4),
        requests=[steady(1)] * 4,
        depth=steady(70),
        metrics=["in_flight", "depth"],
        then={20: 3},
    ),
    Promise(
        "missing figures of one replica never lead to fewer",
        recorded=steady(3),
        requests=[steady(1)] * 2,
        then={20: 3},
    ),
    Promise(
        "missing figures of one replica may lead to more, as if it did nothing",
        recorded=steady(3),
        requests=[steady(20)] * 2,
        then={20: 4},
    ),
    Promise(
        "what is no number never leads to fewer",
        recorded=steady(4),
        requests=[steady(1)] * 4,
        depth=steady(0),
        query="max({depth}) / 0",
        metrics=["in_flight", "depth"],
        then={20: 4},
    ),
    Promise(
        "what has no bound leads to nothing",
        recorded=steady(4),
        requests=[steady(1)] * 4,
        depth=steady(1),
        query="max({depth}) / 0",
        metrics=["depth"],
        then={20: 4},
    ),
    Promise(
        "a replica whose figures end is missing at once",
        recorded=steady(3),
        requests=[steady(9), steady(9), f"{steady(9, 30)} stale"],
        cpu=[steady(0), steady(0), f"{steady(0, 30)} stale"],
        depth=f"{steady(100, 30)} {steady(10)}",
        metrics=["depth"],
        then={58: 3, 60: 3, 90: 3},
    ),
    Promise(
        "a missing metric never leads to fewer",
        recorded=steady(4),
        requests=[steady(1)] * 4,
        metrics=["in_flight", "depth"],
        then={20: 4},
    ),
    Promise(
        "a missing metric may lead to more",
        recorded=steady(4),
        requests=[steady(20)] * 4,
        metrics=["in_flight", "depth"],
        then={20: 8},
    ),
    Promise("without any metric all stays", recorded=steady(4), metrics=["depth"], then={20: 4}),
    Promise(
        "more wait for their window",
        recorded=steady(2),
        requests=[steady(0)] * 2,
        depth=f"{steady(100, 20)} {steady(200)}",
        metrics=["depth"],
        up={"window_seconds": 30},
        then={38: 2, 40: 2, 68: 2, 72: 4},
    ),
    Promise(
        "a moment of less begins the window of more anew",
        recorded=steady(2),
        requests=[steady(0)] * 2,
        depth=f"{steady(100, 20)} {steady(200, 10)} 100 {steady(200)}",
        metrics=["depth"],
        up={"window_seconds": 30},
        then={72: 2, 90: 2, 94: 4},
    ),
    Promise(
        "of what was asked for within the window of more the least decides",
        recorded=steady(2),
        requests=[steady(0)] * 2,
        depth=f"{steady(100, 20)} {steady(150, 5)} {steady(400)}",
        metrics=["depth"],
        up={"window_seconds": 30},
        then={72: 3, 78: 3, 82: 8},
    ),
    Promise(
        "without a window more come at once",
        recorded=steady(2),
        requests=[steady(0)] * 2,
        depth=f"{steady(100, 20)} {steady(200)}",
        metrics=["depth"],
        up=AT_ONCE,
        then={38: 2, 40: 4},
    ),
    Promise(
        "fewer wait for their window",
        recorded=steady(4),
        requests=[steady(0)] * 4,
        depth=f"{steady(100, 20)} {steady(50)}",
        metrics=["depth"],
        down={"window_seconds": 30},
        then={40: 4, 68: 4, 72: 2},
    ),
    Promise(
        "a moment of more begins the window of fewer anew",
        recorded=steady(4),
        requests=[steady(0)] * 4,
        depth=f"{steady(100, 20)} {steady(50, 10)} 100 {steady(50)}",
        metrics=["depth"],
        down={"window_seconds": 30},
        then={72: 4, 90: 4, 94: 2},
    ),
    Promise(
        "of what was asked for within the window of fewer the most decides",
        recorded=steady(4),
        requests=[steady(0)] * 4,
        depth=f"{steady(100, 20)} {steady(70, 5)} {steady(20)}",
        metrics=["depth"],
        down={"window_seconds": 30},
        then={72: 3, 78: 3, 82: 1},
    ),
    Promise(
        "a moment without a metric begins the window of fewer anew",
        recorded=steady(4),
        requests=[steady(0)] * 4,
        depth=f"{steady(100, 20)} {steady(50, 10)} stale {steady(50)}",
        metrics=["depth"],
        down={"window_seconds": 30},
        then={72: 4, 90: 4, 94: 2},
    ),
    Promise(
        "a moment without a replica's figures begins the window of fewer anew",
        recorded=steady(4),
        requests=[steady(0)] * 4,
        cpu=[steady(0)] * 3 + [f"{steady(0, 30)} stale {steady(0)}"],
        depth=f"{steady(100, 20)} {steady(50)}",
        metrics=["depth"],
        down={"window_seconds": 30},
        then={72: 4, 90: 4, 94: 2},
    ),
    Promise(
        "a window with gaps counts as not full",
        recorded=f"_x20 {steady(4)}",
        requests=[steady(0)] * 4,
        depth=steady(50),
        metrics=["depth"],
        down={"window_seconds": 30},
        then={38: None, 40: 4, 50: 4, 72: 2},
    ),
    Promise(
        "where nothing is said fewer wait long and more not at all",
        recorded=steady(4),
        requests=[steady(0)] * 4,
        depth=f"{steady(50, 40)} {steady(150)}",
        metrics=["depth"],
        down={},
        then={78: 4, 80: 6},
    ),
    Promise("without a record there is no target", requests=[steady(50)] * 2, then={20: None}),
    Promise(
        "a record that ends takes the target with it",
        recorded=f"{steady(2, 31)} stale",
        requests=[steady(10)] * 2,
        then={60: 2, 62: None},
    ),
    Promise(
        "what autoscalers read at different times is not added up",
        recorded=steady(3),
        requests=[steady(10)] * 3,
        then={20: 3},
    ),
    Promise(
        "what is asked for beyond all bounds is told, for the alert",
        recorded=steady(20),
        requests=[steady(15)] * 20,
        figure="freehold:replicas_desired",
        then={20: 30},
    ),
]
NAMES = {promise.says: f"service-{number}" for number, promise in enumerate(PROMISES)}


# Three replicas fit on a host, which is to use half of its processors; what leaves does not count.
HOST_POLICY = {
    "min": 2,
    "max": 9,
    "metrics": [{"name": "replicas", "target": 3}, {"name": "cpu", "target": 0.5}],
    "down": {"window_seconds": 60},
}
GOES = {"fleet_leaving": ["app4"]}
# Prometheus's usual interval, in samples of the tests'.
SCRAPED = 15


def hosts(
    says: str,
    then: Mapping[int, int | None],
    *,
    recorded: int,
    replicas: int,
    used: Sequence[float],
    up: Sequence[str] = (),
) -> dict[str, Any]:
    """Return a test of promtool's: so many hosts and replicas are recorded, hosts use so much, and so many hosts are asked for when."""
    series = {
        'freehold_hosts_recorded{tier="app", instance="ops1"}': steady(recorded),
        'freehold_replicas_recorded{service="orders-api", instance="ops1"}': steady(replicas),
        # Not of this tier, or not known to it any more.
        'freehold_replicas_recorded{service="elsewhere", instance="ops1"}': steady(50),
        'host_cpu_seconds_total{instance="app4"}': f"0+{4 * EVERY}x{LONG}",
        'host_cpus{instance="app4"}': steady(4),
        'up{job="node", instance="app4"}': steady(1),
    }
    for place, cores in enumerate(used):
        series[f'host_cpu_seconds_total{{instance="{HOSTS[place]}"}}'] = f"0+{cores * EVERY}x{LONG}"
        series[f'host_cpus{{instance="{HOSTS[place]}"}}'] = steady(4)
        series[f'up{{job="node", instance="{HOSTS[place]}"}}'] = up[place] if up else steady(1)
    asked = 'freehold:hosts_target{tier="app"}'
    expected = [
        {"expr": asked, "eval_time": f"{at}s", "exp_samples": [{"labels": asked, "value": value}]}
        for at, value in then.items()
    ]
    return {
        "name": says,
        "interval": f"{EVERY}s",
        "input_series": [{"series": one, "values": samples} for one, samples in series.items()],
        "promql_expr_test": expected,
    }


def dead(says: str, up: Mapping[str, str], then: Mapping[int, Sequence[str]]) -> dict[str, Any]:
    """Return a test of promtool's: of which hosts it is said when that they are dead, by what answered."""
    expected = [
        {
            "expr": "freehold:host_dead",
            "eval_time": f"{at}s",
            "exp_samples": [
                {"labels": f'freehold:host_dead{{instance="{host}", tier="app"}}', "value": 0} for host in names
            ],
        }
        for at, names in then.items()
    ]
    series = [{"series": f"up{{{labels}}}", "values": samples} for labels, samples in up.items()]
    return {"name": says, "interval": f"{SCRAPED}s", "input_series": series, "promql_expr_test": expected}


HOST_PROMISES = [
    hosts("replicas that do not fit ask for a host", {20: 3}, recorded=2, replicas=7, used=[1, 1]),
    hosts("replicas that fit ask for none", {20: 2, 190: 2}, recorded=2, replicas=6, used=[1, 1]),
    hosts(
        "processors ask for as many as there are, times use / target", {70: 4}, recorded=2, replicas=2, used=[3.6, 3.6]
    ),
    hosts("the greater of two metrics decides", {70: 3}, recorded=2, replicas=9, used=[2, 2]),
    hosts("fewer are asked for after the window", {50: 3, 70: 2}, recorded=3, replicas=3, used=[1, 1, 1]),
    hosts("a host that is to come counts as one that does nothing", {70: 4}, recorded=3, replicas=2, used=[3.6, 3.6]),
    hosts("none goes while one is to come", {20: 3, 190: 3}, recorded=3, replicas=2, used=[0.4, 0.4]),
    hosts(
        "none goes while one is silent",
        {70: 3, 190: 3},
        recorded=3,
        replicas=2,
        used=[0.4, 0.4, 0.4],
        up=[steady(1), steady(1), steady(0)],
    ),
    dead(
        "a host of which nothing answers for two minutes is dead",
        {
            'job="node", instance="app1"': f"{steady(1, 10)} {steady(0)}",
            'job="replicas", instance="app1"': f"{steady(1, 10)} {steady(0)}",
            'job="node", instance="app2"': f"{steady(1, 10)} {steady(0)}",
            'job="replicas", instance="app2"': steady(1),
            'job="node", instance="app4"': f"{steady(1, 10)} {steady(0)}",
        },
        {240: [], 270: ["app1"]},
    ),
    dead(
        "a host that answered again is not",
        {'job="node", instance="app1"': f"1 {steady(0, 12)} 1 {steady(0)}"},
        {225: [], 310: []},
    ),
    dead("one that is watched since less is not", {'job="node", instance="app1"': steady(0)}, {75: [], 120: ["app1"]}),
]


@dataclass(frozen=True)
class Played:
    """What came of it."""

    rules: dict[str, Any]  # of all services
    none: dict[str, Any]  # where no service has a policy
    said: str  # by promtool, of what was not kept
    status: int
    of_hosts: Path  # the rules of hosts
    promtool: Path


def _group(file: Path) -> dict[str, Any]:
    (group,) = yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]
    found: dict[str, Any] = group
    return found


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    """Render the rules of all services and those of none, checked as the role has them checked, and play all promises."""
    folder = tmp_path_factory.mktemp("scaling")
    with phase("promtool") as current:
        promtool = prerequisites.unpack("promtool", current, testing.LOGS / "prerequisites.log")
    order_services = yaml.safe_load((ROOT / "roles/topology/defaults/main.yml").read_text())["topology_order_services"]
    always = {"name": "always", "hosts": "app", "cpus": 1.0, "replicas": 2, "scaling": {}}
    default = [{"scaling": {}, **service} for service in order_services]
    services = [*default, always, *(promise.service(NAMES[promise.says]) for promise in PROMISES)]
    render = {
        "name": "Render",
        "ansible.builtin.template": {
            "src": str(ROOT / "roles/prometheus/templates/scaling.yml.j2"),
            "dest": f"{folder}/{{{{ file }}}}",
            "validate": f"{promtool} check rules %s",
        },
    }
    plays = [
        {
            "hosts": "localhost",
            "connection": "local",
            "gather_facts": False,
            "vars_files": [str(ROOT / "roles/prometheus/vars/main.yml")],
            "vars": {"file": file, "topology_services": having, "topology_host_policies": policies},
            "tasks": [render],
        }
        for file, having, policies in (
            ("all.yml", services, []),
            ("none.yml", [always], []),
            (
                "hosts.yml",
                [always],
                scaling.host_policies(HOST_POLICY, services, {"app": [*HOSTS, "app4"], **GOES}, "app"),
            ),
        )
    ]
    (folder / "play.yml").write_text(yaml.safe_dump(plays), encoding="utf-8")
    assert run_playbook(str(folder / "play.yml"), Path("localhost,")) == (0, {})
    series = {one: samples for promise in PROMISES for one, samples in promise.series(NAMES[promise.says]).items()}
    expected = []
    for promise in PROMISES:
        asked = f'{promise.figure}{{service="{NAMES[promise.says]}"}}'
        for seconds, value in promise.then.items():
            samples = [] if value is None else [{"labels": asked, "value": value}]
            expected.append({"expr": asked, "eval_time": f"{seconds}s", "exp_samples": samples})
    test = {
        "interval": f"{EVERY}s",
        "input_series": [{"series": one, "values": samples} for one, samples in series.items()],
        "promql_expr_test": expected,
    }
    file = folder / "promises.yml"
    file.write_text(
        yaml.safe_dump({"rule_files": ["all.yml"], "evaluation_interval": f"{EVERY}s", "tests": [test]}),
        encoding="utf-8",
    )
    done = subprocess.run([promtool, "test", "rules", file], capture_output=True, text=True, check=False)
    return Played(
        _group(folder / "all.yml"),
        _group(folder / "none.yml"),
        done.stdout + done.stderr,
        done.returncode,
        folder / "hosts.yml",
        promtool,
    )


@pytest.mark.parametrize("says", NAMES)
def test_a_promise_is_kept(played: Played, says: str) -> None:
    """Of as many replicas as the record says, and what they and the policy's metrics show."""
    broken = [part for part in played.said.split("    expr: ") if f'service=\\"{NAMES[says]}\\"' in part]
    assert broken == []


def test_promtool_complains_of_nothing_else(played: Played) -> None:
    """Such as of a test that it cannot read."""
    assert played.status == 0, played.said


@pytest.mark.parametrize("promise", [pytest.param(one, id=str(one["name"])) for one in HOST_PROMISES])
def test_a_promise_of_hosts_is_kept(played: Played, promise: dict[str, Any], tmp_path: Path) -> None:
    """Of as many hosts as the record says, and what they run and use."""
    test = {"rule_files": [str(played.of_hosts)], "evaluation_interval": f"{EVERY}s", "tests": [promise]}
    (tmp_path / "promise.yml").write_text(yaml.safe_dump(test), encoding="utf-8")
    command = [str(played.promtool), "test", "rules", str(tmp_path / "promise.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_service_without_a_policy_has_no_rules(played: Played) -> None:
    """And where none has one, the file is good all the same."""
    assert played.none["rules"] == []
    with_rules = {rule["labels"]["service"] for rule in played.rules["rules"]}
    assert with_rules == {"orders-api", *NAMES.values()}


def test_rules_are_worked_out_as_often_as_the_autoscaler_believes(played: Played) -> None:
    """What is older than ten seconds it takes for no answer, so several evaluations must fit in."""
    assert played.rules["interval"] == played.none["interval"] == f"{EVERY}s"
    assert autoscaler.ROUND_SECONDS == EVERY


@pytest.mark.parametrize("most", range(10))
def test_replicas_are_spread_evenly_and_the_first_by_name_have_one_more(most: int) -> None:
    """In whatever order the hosts are given; hosts themselves work out the same."""
    spread = scaling.spread(most, ["app3", "app1", "app2"])
    counts = [spread[host] for host in HOSTS]
    assert sum(counts) == most
    assert counts == sorted(counts, reverse=True)
    assert max(counts) - min(counts) <= 1
    assert counts == [replicas.share(most, sorted(HOSTS), host) for host in HOSTS]


POLICY = {"min": 2, "max": 7, "metrics": [{"name": "cpu", "target": 0.7}]}


def test_a_policy_of_hosts_has_its_patience() -> None:
    """A host takes longer to come than a replica; a tier without one has no policy."""
    (policy,) = scaling.host_policies({**HOST_POLICY, "down": {}}, [], {"app": list(HOSTS)}, "app")
    assert policy["up"] == {"window_seconds": 0, "step": 1, "pause_seconds": 120}
    assert policy["down"] == {"window_seconds": 600, "step": 1, "pause_seconds": 300}
    assert scaling.host_policies({}, [], {"app": list(HOSTS)}, "app") == []


SCALED = {"name": "orders-api", "hosts": "app", "replicas": 1, "cpus": 1.5, "scaling": POLICY}


@pytest.mark.parametrize(
    ("recorded", "total"),
    [({}, 2), ({"orders-api": 5}, 5), ({"orders-api": 99}, 7), ({"orders-api": 1}, 2), ({"other": 5}, 2)],
    ids=["never changed", "inside", "above", "below", "another's"],
)
def test_hosts_have_their_shares_of_the_record_within_the_bounds(recorded: dict[str, int], total: int) -> None:
    """Of a service whose number was never changed, of the least."""
    placed = {host: scaling.placed([SCALED], {"app": list(HOSTS)}, host, recorded)[0] for host in HOSTS}
    for key, sum_of_all in (("replicas", total), ("least", 2), ("most", 7)):
        assert {host: entry[key] for host, entry in placed.items()} == scaling.spread(sum_of_all, HOSTS)
    assert all(entry["name"] == "orders-api" for entry in placed.values())


def test_a_service_without_a_policy_has_its_replicas_on_each_host() -> None:
    """Whatever a record of earlier times says."""
    service = {**SCALED, "replicas": 3, "scaling": {}}
    for host in HOSTS:
        (placed,) = scaling.placed([service], {"app": list(HOSTS)}, host, {"orders-api": 9})
        assert [placed[key] for key in ("replicas", "least", "most")] == [3, 3, 3]
    assert scaling.scaling_policies([service]) == []


def test_a_policy_has_what_it_leaves_out() -> None:
    """And keeps what it says."""
    (policy,) = scaling.scaling_policies([{**SCALED, "scaling": {**POLICY, "up": {"window_seconds": 30}}}])
    assert policy["up"] == {"window_seconds": 30, "step": 4, "pause_seconds": 15}
    assert policy["down"] == {"window_seconds": 300, "step": 1, "pause_seconds": 60}
    assert policy["metrics"][0]["expr"].endswith("/ 1.5")


# At most four more at once, after 15 s; one fewer, after 60 s.
PACE = autoscaler.Policy(2, 9, autoscaler.Behaviour(4, 15), autoscaler.Behaviour(1, 60))


@pytest.mark.parametrize(
    ("now", "target", "since", "then"),
    [
        pytest.param(3, 3, 999, 3, id="nothing is asked for"),
        pytest.param(3, 5, 999, 5, id="within a step"),
        pytest.param(2, 9, 999, 6, id="a step of more"),
        pytest.param(9, 2, 999, 8, id="a step of fewer"),
        pytest.param(3, 5, 14.9, 3, id="the pause before more"),
        pytest.param(3, 5, 15, 5, id="the pause before more is over"),
        pytest.param(5, 3, 59.9, 5, id="the pause before fewer"),
        pytest.param(5, 3, 60, 4, id="the pause before fewer is over"),
        pytest.param(3, 5, 20, 5, id="more need not wait as long as fewer"),
        pytest.param(8, 40, 999, 9, id="no more than the most"),
        pytest.param(9, 40, 999, 9, id="the most is reached"),
        pytest.param(3, 0, 999, 2, id="no fewer than the least"),
        pytest.param(2, 0, 999, 2, id="the least is reached"),
        pytest.param(3, 5, float("inf"), 5, id="a number that was never changed"),
        pytest.param(3, 5, -30, 3, id="a change that another's clock dates later than now"),
    ],
)
def test_replicas_change_by_steps_and_with_pauses(now: int, target: float, since: float, then: int) -> None:
    """Of `now` replicas there are to be `then`."""
    assert PACE.next(now, target, since) == then


@pytest.mark.parametrize(("now", "inside"), [(0, 2), (1, 2), (20, 9)])
@pytest.mark.parametrize("target", [0, 1, 5, 20])
@pytest.mark.parametrize("since", [0, 999])
def test_bounds_win_over_steps_pauses_and_what_is_asked_for(now: int, inside: int, target: float, since: float) -> None:
    """A policy that was changed holds at once."""
    assert PACE.next(now, target, since) == inside


class Around:
    """In place of etcd, Prometheus and the lease, for what an autoscaler tells of hosts."""

    def __init__(self, hosts: int, present: int, dead: Sequence[str]) -> None:
        self.entries = (
            {"app": {"hosts": hosts, "at": "2026-01-01T00:00:00+00:00", "reason": "of before"}} if hosts else {}
        )
        self.present, self.dead = present, set(dead)
        self.recorded: list[int] = []
        self.etcd = self.prometheus = True

    def keep(self) -> bool:
        """Hold the lease."""
        return True

    held = True

    def scalings(self, _folder: str) -> dict[str, Any]:
        """Return the record."""
        if not self.etcd:
            raise autoscaler.RecordUnreachableError
        return self.entries

    def scale(self, _name: str, count: int, **_: object) -> bool:
        """Write the record."""
        self.recorded.append(count)
        self.entries = {"app": {"hosts": count, "at": "2026-01-01T00:00:00+00:00", "reason": "of now"}}
        return True

    def ask(self, query: str) -> list[dict[str, Any]]:
        """Answer a query."""
        if not self.prometheus:
            raise autoscaler.UnknownError
        there = query == autoscaler.PRESENT and self.present
        return [{"metric": {"tier": "app"}, "value": [0, str(self.present)]}] if there else []

    def agreed(self, _query: str, _label: str) -> set[str]:
        """Name dead hosts."""
        return self.dead


def told_of_hosts(around: Around, *, dry_run: bool = False) -> dict[str, Any]:
    """Return what an autoscaler tells of hosts after a round."""
    pace = {"step": 1, "pause_seconds": 0}
    policy = {"name": "app", "min": 2, "max": 4, "up": pace, "down": pace}
    config = {"host": "ops1", "dry_run": dry_run, "policies": [], "host_policies": [policy]}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("Record", "Prometheus"):
            patch.setattr(autoscaler, name, lambda _config: around)
        patch.setattr(autoscaler, "Leadership", lambda *_: around)
        one = autoscaler.Autoscaler(config | {"record": {}})
    one.round()
    found: dict[str, Any] = one.hosts()
    return found


def test_an_autoscaler_tells_how_many_hosts_there_are_to_be_and_which_are_dead() -> None:
    """And why so many."""
    tier = {"hosts": 3, "most": 4, "reason": "of before", "dead": ["app3"]}
    assert told_of_hosts(Around(3, 3, ["app3"])) == {"active": True, "tiers": {"app": tier}}


@pytest.mark.parametrize("dry_run", [False, True])
def test_which_hosts_are_dead_is_not_known_without_prometheus_nor_told_where_nothing_is_to_be_done(
    dry_run: bool,
) -> None:
    """That is another answer than none."""
    around = Around(3, 3, ["app3"])
    around.prometheus = dry_run
    told = told_of_hosts(around, dry_run=dry_run)
    assert (told["active"], told["tiers"]["app"]["dead"]) == (True, None)


def test_without_etcd_nobody_is_told_anything() -> None:
    """What was recorded may have changed."""
    around = Around(3, 3, [])
    around.etcd = False
    assert told_of_hosts(around) == {"active": False, "tiers": {}}


@pytest.mark.parametrize(("present", "begins"), [(3, [3]), (9, [4]), (1, [2]), (0, [])])
def test_a_policy_begins_with_as_many_hosts_as_there_are(present: int, begins: list[int]) -> None:
    """Within its bounds; fewer would go at once. Nothing is told before, nor where nobody knows how many there are."""
    around = Around(0, present, [])
    assert told_of_hosts(around)["tiers"] == {}
    assert around.recorded == begins
