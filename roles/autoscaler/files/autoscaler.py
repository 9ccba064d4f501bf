#!/usr/bin/python3
"""Have as many replicas of each service as its policy asks for.

Prometheus works out how many that are (rules/scaling.yml of the role `prometheus`); this compares them with the record in etcd every
two seconds and writes the difference there, within the policy's bounds, steps and pauses. Hosts follow the record by themselves
(roles/service/files/replicas.py). One of all autoscalers is active, by a lease in etcd; the others only look. What is not known
changes nothing: without an answer of Prometheus, or with one that is old, the record stays.

Argument: the configuration, JSON that the role `autoscaler` writes.
"""

from __future__ import annotations

import http.client
import json
import logging
import math
import ssl
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from service_record import ChangedMeanwhileError, Etcd, Record, RecordUnreachableError, encode

ROUND_SECONDS = 2
# An autoscaler that says nothing for so long is not the active one any more.
LEASE_SECONDS = 8
FRESH_SECONDS = 10
LEADER = "/freehold/scaling/leader"
TIMEOUT_SECONDS = 2
# Rules are looked at every two seconds; what was worked out before this says nothing of now.
TARGETS = f"freehold:replicas_target and (time() - timestamp(freehold:replicas_target) < {FRESH_SECONDS})"
METRICS = "freehold:scaling_ratio"
LOGGER = logging.getLogger("autoscaler")


class UnknownError(Exception):
    """No Prometheus server gave an answer."""


@dataclass(frozen=True)
class Behaviour:
    """How a service's replicas become more, or fewer."""

    step: int
    pause_seconds: float


@dataclass(frozen=True)
class Policy:
    """What bounds the replicas of a service."""

    least: int
    most: int
    up: Behaviour
    down: Behaviour

    def next(self, replicas: int, target: float, since_seconds: float) -> int:
        """Return how many there are to be, where there are `replicas` for so long and `target` are asked for."""
        inside = min(max(replicas, self.least), self.most)
        if inside != replicas:
            return inside
        wanted = min(max(round(target), self.least), self.most)
        behaviour = self.up if wanted > replicas else self.down
        if wanted == replicas or since_seconds < behaviour.pause_seconds:
            return replicas
        return min(wanted, replicas + behaviour.step) if wanted > replicas else max(wanted, replicas - behaviour.step)


class Prometheus:
    """Prometheus servers, this host's own first."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._servers: list[str] = config["prometheus"]
        self._tls = ssl.create_default_context(cafile=config["record"]["ca_file"])
        self._files = (config["record"]["certificate"], config["record"]["key"])

    def ask(self, query: str) -> list[dict[str, Any]]:
        """Return the series of an answer, each with its labels (`metric`) and `value`; raise UnknownError where there is none."""
        problems = []
        # They may have been renewed.
        self._tls.load_cert_chain(*self._files)
        for server in self._servers:
            address = f"https://{server}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
            try:
                with urllib.request.urlopen(address, timeout=TIMEOUT_SECONDS, context=self._tls) as answer:
                    found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
            except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
                problems.append(f"{server}: {error}")
                continue
            return found
        raise UnknownError("; ".join(problems))


class Leadership:
    """A lease in etcd, and the key that belongs to who holds it."""

    def __init__(self, etcd: Etcd, host: str) -> None:
        self._etcd = etcd
        self._host = host
        self._lease = ""
        self.held = False

    def keep(self) -> bool:
        """Have the lease, or ask for it, and say whether this host has it."""
        before, self.held = self.held, False
        self.held = self._keep()
        if self.held != before:
            LOGGER.info(json.dumps({"event": "active" if self.held else "passive", "host": self._host}))
        return self.held

    def _keep(self) -> bool:
        if self._lease:
            kept = self._etcd.call("/v3/lease/keepalive", {"ID": self._lease})
            if int(kept.get("result", {}).get("TTL", "0")) <= 0:
                self._lease = ""
        if not self._lease:
            self._lease = self._etcd.call("/v3/lease/grant", {"TTL": LEASE_SECONDS})["ID"]
        key = encode(LEADER)
        mine = {"key": key, "target": "LEASE", "lease": self._lease}
        put = {"request_put": {"key": key, "value": encode(self._host), "lease": self._lease}}
        if self._etcd.call("/v3/kv/txn", {"compare": [mine], "success": []}).get("succeeded"):
            return True
        free = {"key": key, "target": "CREATE", "create_revision": "0"}
        return bool(self._etcd.call("/v3/kv/txn", {"compare": [free], "success": [put]}).get("succeeded"))


class Autoscaler:
    """What is decided, and what is told of it."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.policies = {
            policy["name"]: Policy(
                policy["min"],
                policy["max"],
                *(Behaviour(policy[way]["step"], policy[way]["pause_seconds"]) for way in ("up", "down")),
            )
            for policy in config["policies"]
        }
        self.record = Record(config["record"])
        self.prometheus = Prometheus(config)
        self.leadership = Leadership(self.record, config["host"])
        self.recorded = {name: policy.least for name, policy in self.policies.items()}
        self.targets: dict[str, float] = {}
        self.decisions = {(name, way): 0 for name in self.policies for way in ("up", "down")}
        self.failures = dict.fromkeys(("etcd", "prometheus", "record", "unknown_service"), 0)
        self.round_at = 0.0
        self._seen: dict[str, int] = {}
        self._said: dict[str, str] = {}

    def round(self) -> None:
        """Compare what is asked for with what there is, and record the difference where this host is the active one."""
        try:
            active = self.leadership.keep()
            entries = self.record.scalings()
            self._seen = {name: int(entries[name]["replicas"]) if name in entries else 0 for name in self.policies}
            self.recorded = {name: self._seen[name] or policy.least for name, policy in self.policies.items()}
            if active:
                self._decide(entries)
            self.round_at = time.time()
            self._say("etcd", "")
        except RecordUnreachableError as error:
            self._fail("etcd", str(error))
        except ChangedMeanwhileError as error:
            self._fail("record", str(error))

    def _decide(self, entries: dict[str, dict[str, Any]]) -> None:
        try:
            series = self.prometheus.ask(TARGETS)
        except UnknownError as error:
            self._fail("prometheus", str(error))
            return
        self._say("prometheus", "")
        told = {str(one["metric"].get("service", "")): float(one["value"][1]) for one in series}
        asked = {name: target for name, target in told.items() if math.isfinite(target)}
        strangers = sorted(set(asked) - set(self.policies))
        if strangers:
            self._fail("unknown_service", repr(strangers))
        self.targets = {name: asked[name] for name in self.policies if name in asked}
        for name, policy in self.policies.items():
            replicas, target = self.recorded[name], self.targets.get(name)
            # Bounds hold whatever is asked for, or when nothing is.
            wanted = policy.next(replicas, replicas if target is None else target, _age(entries.get(name)))
            if wanted != replicas:
                self._change(name, replicas, wanted)

    def _change(self, name: str, replicas: int, wanted: int) -> None:
        reason = self._reason(name)
        way = "up" if wanted > replicas else "down"
        said = {"event": "scale", "service": name, "from": replicas, "to": wanted, "reason": reason}
        if self.config["dry_run"]:
            self._say(name, json.dumps(said | {"event": "would scale"}))
            return
        by = f"autoscaler on {self.config['host']}"
        if self.record.scale(name, wanted, by=by, reason=reason, seen=self._seen[name]):
            LOGGER.info(json.dumps(said))
            self.decisions[name, way] += 1
            self.recorded[name] = wanted

    def _reason(self, name: str) -> str:
        """Return what each metric of a policy said, in words."""
        try:
            ratios = self.prometheus.ask(f'{METRICS}{{service="{name}"}}')
        except UnknownError:
            ratios = []
        told = [f"{one['metric']['metric']} is {float(one['value'][1]):.2f} of its target" for one in ratios]
        return ", ".join(sorted(told)) or "the policy's bounds"

    def _fail(self, kind: str, why: str) -> None:
        self.failures[kind] += 1
        self._say(kind, json.dumps({"event": "failure", "kind": kind, "why": why}))

    def _say(self, what: str, words: str) -> None:
        """Write a line where it is another than the last one of its kind."""
        if words and self._said.get(what) != words:
            LOGGER.warning(words)
        self._said[what] = words

    def figures(self) -> Iterator[str]:
        """Tell what Prometheus asks for, a line each."""
        yield f"freehold_autoscaler_active {int(self.leadership.held)}"
        yield f"freehold_autoscaler_round_timestamp_seconds {self.round_at:.3f}"
        yield f"freehold_autoscaler_dry_run {int(self.config['dry_run'])}"
        for kind, count in self.failures.items():
            yield f'freehold_autoscaler_failures_total{{kind="{kind}"}} {count}'
        # What was read long ago may have been changed since.
        fresh = time.time() - self.round_at < FRESH_SECONDS
        for name, policy in self.policies.items():
            if fresh:
                yield f'freehold_replicas_recorded{{service="{name}"}} {self.recorded[name]}'
            yield f'freehold_replicas_least{{service="{name}"}} {policy.least}'
            yield f'freehold_replicas_most{{service="{name}"}} {policy.most}'
        for (name, way), count in self.decisions.items():
            yield f'freehold_autoscaler_decisions_total{{service="{name}",direction="{way}"}} {count}'


def _age(entry: dict[str, Any] | None) -> float:
    """Return for how many seconds a number of replicas stands."""
    if entry is None:
        return float("inf")
    return (datetime.now(UTC) - datetime.fromisoformat(entry["at"])).total_seconds()


class Figures(BaseHTTPRequestHandler):
    """What the host proxy passes on from Prometheus."""

    autoscaler: Autoscaler

    def do_GET(self) -> None:
        """Answer with figures."""
        data = "".join(f"{line}\n" for line in self.autoscaler.figures()).encode()
        self.send_response(http.client.OK)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing of each question."""


def main() -> None:
    """Go round for good."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    autoscaler = Autoscaler(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    Figures.autoscaler = autoscaler
    server = ThreadingHTTPServer(("127.0.0.1", autoscaler.config["port"]), Figures)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    while True:
        started = time.monotonic()
        autoscaler.round()
        time.sleep(max(0.0, ROUND_SECONDS - (time.monotonic() - started)))


if __name__ == "__main__":
    main()
