"""Runs on a host, as root: asks the parts that run there and prints their answers as JSON.

Sent there by `make status` and by the tests of the whole system; needs nothing but Python and what the roles installed.
"""

from __future__ import annotations

import fnmatch
import glob
import json
import os
import re
import socket
import subprocess
import sys
import urllib.parse
from typing import Any

PKI = "/etc/freehold/pki"
SPREAD = "/etc/valkey/spread.json"
# Package and unit of each part, as far as Debian has them.
PARTS = {
    "etcd-server": "etcd",
    "postgresql-17": "patroni",
    "patroni": "patroni",
    "pgbouncer": "pgbouncer",
    "valkey-server": "valkey-*",
    "rabbitmq-server": "rabbitmq-server",
    "docker-registry": "docker-registry",
    "podman": "",
    "haproxy": "haproxy",
    "keepalived": "keepalived",
    "prometheus": "prometheus",
    "prometheus-alertmanager": "prometheus-alertmanager",
    "prometheus-node-exporter": "prometheus-node-exporter",
    "syslog-ng-core": "syslog-ng",
}

SCALING = ("freehold-autoscaler", "freehold-replicas")
COUNTS = (
    "max by (__name__, service, tier) "
    '({__name__=~"freehold_(replicas|hosts)_(recorded|least|most)|freehold:hosts_present"}) '
    'or sum by (__name__, service) ({__name__="freehold_replicas_ready"})'
)


def run(*command: str, **environment: str) -> str:
    """Return what a command printed; raises RuntimeError with its words."""
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=15, env={**os.environ, **environment}
    )
    if result.returncode:
        raise RuntimeError(f"{command[0]}: {result.stderr.strip() or result.stdout.strip()}")
    return result.stdout


def patroni(address: str) -> Any:  # noqa: ANN401
    """Return the cluster as Patroni sees it."""
    files = ("--cacert", f"{PKI}/ca.crt", "--cert", f"{PKI}/patroni.crt", "--key", f"{PKI}/patroni.key")
    return json.loads(run("curl", "-sS", "-m", "5", *files, f"https://{address}:8008/cluster"))


def etcd(endpoints: str) -> Any:  # noqa: ANN401
    """Return the status of every member that answers."""
    files = {"ETCDCTL_CACERT": f"{PKI}/ca.crt", "ETCDCTL_CERT": f"{PKI}/etcd.crt", "ETCDCTL_KEY": f"{PKI}/etcd.key"}
    command = ["etcdctl", f"--endpoints={endpoints}", "--command-timeout=3s", "endpoint", "status", "-w", "json"]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=15, env={**os.environ, **files}
    )
    try:
        return json.loads(result.stdout)
    except json.JSONDecodeError:
        raise RuntimeError(f"etcdctl: {result.stderr.strip()}") from None


def valkey(address: str, port: int, login: dict[str, str]) -> dict[str, Any]:
    """Return a cluster's state and nodes as one of its instances sees them."""

    def ask(*words: str) -> str:
        options = ["--no-auth-warning", "--tls", "--cacert", f"{PKI}/ca.crt", "--user", login["user"]]
        return run(
            *("valkey-cli", "-h", address, "-p", str(port), *options, *words),
            REDISCLI_AUTH=login["password"],
            VALKEYCLI_AUTH=login["password"],
        )

    state = next(
        line.partition(":")[2].strip() for line in ask("cluster", "info").splitlines() if "cluster_state" in line
    )
    nodes = []
    for line in ask("cluster", "nodes").splitlines():
        words = line.split()
        if len(words) < 8:
            continue
        flags = set(words[2].split(",")) - {"myself", "master", "slave"}
        nodes.append(
            {
                "id": words[0],
                "address": words[1].partition(":")[0],
                "flags": sorted(flags),
                "primary": "" if words[3] == "-" else words[3],
                "connected": words[7] == "connected",
            }
        )
    return {"state": state, "nodes": nodes}


def rabbitmq() -> Any:  # noqa: ANN401
    """Return the quorum queues: leader, members, those that are there, and whether the leader is where it belongs."""
    return json.loads(run("/usr/local/lib/freehold/rabbitmq-spread", "--show"))["queues"]


def edge(vip: str) -> dict[str, Any]:
    """Return whether this host holds the address, and each server that HAProxy does not use."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect("/run/haproxy/admin.sock")
        connection.sendall(b"show stat\n")
        answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    rows = [line.split(",") for line in answer.splitlines() if line]
    status = rows[0].index("status")
    problems = [
        f"{row[0]}/{row[1]} is {row[status]}"
        for row in rows[1:]
        if row[1] not in ("FRONTEND", "BACKEND") and not row[status].startswith(("UP", "no check"))
    ]
    if run("systemctl", "show", "--property=ActiveState", "--value", "keepalived").strip() != "active":
        problems.append("keepalived does not run")
    return {"holds": vip in run("ip", "-4", "address", "show", "to", vip), "problems": problems}


def prometheus(path: str) -> Any:  # noqa: ANN401
    """Return what this host's Prometheus answers."""
    with open("/etc/default/prometheus", encoding="utf-8") as file:
        found = re.search(r"--web\.listen-address=(\S+)", file.read())
    if not found:
        raise RuntimeError("prometheus: it was not configured")
    files = ("--cacert", f"{PKI}/ca.crt", "--cert", f"{PKI}/prometheus.crt", "--key", f"{PKI}/prometheus.key")
    return json.loads(run("curl", "-sS", "-m", "5", *files, f"https://{found[1]}/api/v1/{path}"))["data"]


def alerts() -> list[dict[str, str]]:
    """Return the labels of the alerts that fire, as this host's Prometheus sees them."""
    return [alert["labels"] for alert in prometheus("alerts")["alerts"] if alert["state"] == "firing"]


def counts() -> list[tuple[dict[str, str], float]]:
    """Return how many replicas and hosts are recorded, there and allowed: the labels of each figure, `__name__` too, and its value."""
    found = prometheus(f"query?query={urllib.parse.quote(COUNTS)}")["result"]
    return [(one["metric"], float(one["value"][1])) for one in found]


def tell(question: Any, *arguments: Any) -> Any:  # noqa: ANN401
    """Return the answer, or in words why there is none."""
    try:
        return question(*arguments)
    except (RuntimeError, OSError, ValueError, StopIteration, subprocess.SubprocessError) as error:
        return f"{type(error).__name__}: {error}"


def versions() -> dict[str, str]:
    """Return the versions of the parts that are installed here, as their authors count them."""
    shown = subprocess.run(
        ["dpkg-query", "--show", "--showformat", "${Package} ${db:Status-Status} ${Version}\n", *PARTS],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    found = re.findall(r"^(\S+) installed (?:\d+:)?([\d.]+)", shown, re.MULTILINE)
    unpacked = (os.path.basename(folder).rpartition("-") for folder in glob.glob("/opt/*-[0-9]*"))
    return dict(found) | {name: version for name, _, version in unpacked}


def units() -> dict[str, str]:
    """Return the state of each unit that the platform runs here, and of every unit that failed."""
    patterns = {unit for unit in PARTS.values() if unit} | {"keycloak", "jaeger", "loki", "grafana", *SCALING}
    listed = json.loads(run("systemctl", "list-units", "--type=service", "--all", "--output=json"))
    services = [line["unit"] for line in listed if "@" in line["unit"] and line["unit"].split("@")[0] in networks()]
    return {
        line["unit"].removesuffix(".service"): line["sub"] if line["active"] == "active" else line["active"]
        for line in listed
        if line["active"] == "failed"
        or line["unit"] in services
        or (line["load"] == "loaded" and any(fnmatch.fnmatch(line["unit"], f"{p}.service") for p in patterns))
    }


def networks() -> set[str]:
    """Return the names of the services that have a network, and so run, on this host."""
    folder = "/etc/containers/systemd"
    files = os.listdir(folder) if os.path.isdir(folder) else []
    return {name.removeprefix("svc-").removesuffix(".network") for name in files if name.endswith(".network")}


def status(vip: str) -> dict[str, Any]:
    """Return all that this host can say of itself and of what it is a part of."""
    known = versions()
    answers: dict[str, Any] = {"versions": known, "units": tell(units)}
    if os.path.exists(SPREAD):
        with open(SPREAD, encoding="utf-8") as file:
            spread = json.load(file)
        address = spread["address"]
        answers["valkey"] = {
            name: tell(valkey, address, ports[0], spread) for name, ports in spread["clusters"].items()
        }
        answers["patroni"] = tell(patroni, address)
    if "etcd-server" in known:
        answers["etcd"] = tell(etcd, "https://127.0.0.1:2379")
    if "rabbitmq-server" in known:
        answers["rabbitmq"] = tell(rabbitmq)
    if "prometheus" in known:
        answers["alerts"] = tell(alerts)
        answers["counts"] = tell(counts)
    answers["holds_vip"] = bool(vip) and vip in run("ip", "-4", "address", "show", "to", vip)
    return answers


def main(what: str, *arguments: str) -> None:
    """Print the answers about one kind of host."""
    if what == "edge":
        answers = edge(*arguments)
    elif what == "status":
        answers = status(*arguments)
    elif what == "rabbitmq":
        answers = {"rabbitmq": tell(rabbitmq)}
    else:
        with open(SPREAD, encoding="utf-8") as file:
            spread = json.load(file)
        address = spread["address"]
        answers = {
            "patroni": tell(patroni, address),
            "etcd": tell(etcd, *arguments),
            "valkey": {name: tell(valkey, address, ports[0], spread) for name, ports in spread["clusters"].items()},
        }
    print(json.dumps(answers))


main(*sys.argv[1:])
