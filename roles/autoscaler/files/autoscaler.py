#!/usr/bin/python3
"""Have as many replicas of each service, and as many hosts of a tier, as its policy asks for.

Prometheus works out how many that are (rules/scaling.yml of the role `prometheus`); this compares them with the record in etcd every
two seconds and writes the difference there, within the policy's bounds, steps and pauses. Hosts follow the record of replicas by
themselves (roles/service/files/replicas.py); that of hosts is carried out by who has the keys to them (freehold/follow.py), which asks
this at the path /hosts. One of all autoscalers is active, by a lease in etcd; the others only look. What is not known changes nothing:
without an answer of Prometheus, or with one that is old, the record stays.

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

from service_record import HOSTS, SCALING, ChangedMeanwhileError, Etcd, Record, RecordUnreachableError, encode

ROUND_SECONDS = 2
# An autoscaler that says nothing for so long is not the active one any more.
LEASE_SECONDS = 8
FRESH_SECONDS = 10
LEADER = "/freehold/scaling/leader"
TIMEOUT_SECONDS = 2
# Rules are looked at every two seconds; what was worked out before this says nothing of now.
TOLD = '{__name__=~"freehold:(replicas|hosts)_target"}'
TARGETS = f"{TOLD} and (time() - timestamp({TOLD}) < {FRESH_SECONDS})"
METRICS = "freehold:scaling_ratio"
DEAD = f"freehold:host_dead and (time() - timestamp(freehold:host_dead) < {FRESH_SECONDS})"
PRESENT = "freehold:hosts_present"
BOUNDS = "the policy's bounds"
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
    """What bounds the replicas of a service, or the hosts of a tier."""

    least: int
    most: int
    up: Behaviour
    down: Behaviour

    def next(self, count: int, target: float, since_seconds: float) -> int:
        """Return how many there are to be, where there are `count` for so long and `target` are asked for."""
        inside = min(max(count, self.least), self.most)
        if inside != count:
            return inside
        wanted = min(max(round(target), self.least), self.most)
        behaviour = self.up if wanted > count else self.down
        if wanted == count or since_seconds < behaviour.pause_seconds:
            return count
        return min(wanted, count + behaviour.step) if wanted > count else max(wanted, count - behaviour.step)


@dataclass(frozen=True)
class Subject:
    """What has a policy: a service with its replicas, or a tier with its hosts."""

    kind: str
    """`service` or `tier`, the label of figures."""
    name: str

    @property
    def counted(self) -> str:
        """Return what is counted, as figures and the record call it."""
        return "replicas" if self.kind == "service" else "hosts"

    @property
    def folder(self) -> str:
        """Return where the record has it."""
        return SCALING if self.kind == "service" else HOSTS

    @property
    def label(self) -> str:
        """Return the label of its figures."""
        return f'{self.kind}="{self.name}"'


class Prometheus:
    """Prometheus servers, this host's own first."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._servers: list[str] = config["prometheus"]
        self._tls = ssl.create_default_context(cafile=config["record"]["ca_file"])
        self._files = (config["record"]["certificate"], config["record"]["key"])

    def ask(self, query: str) -> list[dict[str, Any]]:
        """Return the series of an answer, each with its labels (`metric`) and `value`; raise UnknownError where there is none."""
        return next(self._answers(query))

    def agreed(self, query: str, label: str) -> set[str]:
        """Return the values of a label that the answers of all servers have, of those that answer; raise UnknownError where none does."""
        told = [{str(one["metric"].get(label, "")) for one in series} for series in self._answers(query)]
        return set.intersection(*told)

    def _answers(self, query: str) -> Iterator[list[dict[str, Any]]]:
        """Yield the answer of each server that gives one; raise UnknownError after the last, where none did."""
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
            yield found
        if len(problems) == len(self._servers):
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
        before = self.held
        try:
            self.held = self._keep()
        except RecordUnreachableError:
            self.held = False
            raise
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
            Subject(kind, policy["name"]): Policy(
                policy["min"],
                policy["max"],
                *(Behaviour(policy[way]["step"], policy[way]["pause_seconds"]) for way in ("up", "down")),
            )
            for kind, policies in (("service", config["policies"]), ("tier", config["host_policies"]))
            for policy in policies
        }
        self.record = Record(config["record"])
        self.prometheus = Prometheus(config)
        self.leadership = Leadership(self.record, config["host"])
        self.recorded = {subject: policy.least for subject, policy in self.policies.items()}
        self.reasons = dict.fromkeys(self.policies, "")
        # What is told of hosts, changed as a whole at the end of each round: other threads read it.
        self.told: dict[str, Any] = {"active": False, "tiers": {}}
        self.decisions = {(subject, way): 0 for subject in self.policies for way in ("up", "down")}
        self.failures = dict.fromkeys(("etcd", "prometheus", "record", "unknown_service"), 0)
        self.round_at = 0.0
        self._seen: dict[Subject, int] = {}
        self._said: dict[object, str] = {}

    def round(self) -> None:
        """Compare what is asked for with what there is, and record the difference where this host is the active one."""
        try:
            active = self.leadership.keep()
            entries = self._entries()
            self._seen = {subject: int(entry[subject.counted]) if entry else 0 for subject, entry in entries.items()}
            self.recorded = {subject: self._seen[subject] or policy.least for subject, policy in self.policies.items()}
            self.reasons = {subject: str(entry.get("reason", "")) for subject, entry in entries.items()}
            dead = self._decide(entries) if active else None
            self.round_at = time.time()
            self.told = {"active": active, "tiers": self._tiers(dead)}
            self._say("etcd", "")
        except RecordUnreachableError as error:
            self.told = {"active": False, "tiers": {}}
            self._fail("etcd", str(error))
        except ChangedMeanwhileError as error:
            self._fail("record", str(error))

    def _entries(self) -> dict[Subject, dict[str, Any]]:
        """Return what the record has of each that has a policy; nothing of what it never had."""
        folders = {subject.folder for subject in self.policies}
        found = {folder: self.record.scalings(folder) for folder in folders}
        return {subject: found[subject.folder].get(subject.name, {}) for subject in self.policies}

    def _decide(self, entries: dict[Subject, dict[str, Any]]) -> set[str] | None:
        """Record what is asked for; return which hosts are dead, None where that is not known."""
        tiers = [subject for subject in self.policies if subject.kind == "tier"]
        try:
            series = self.prometheus.ask(TARGETS)
            dead = self.prometheus.agreed(DEAD, "instance") if tiers else None
            there = self.prometheus.ask(PRESENT) if not all(entries[tier] for tier in tiers) else []
        except UnknownError as error:
            self._fail("prometheus", str(error))
            return None
        self._say("prometheus", "")
        told = {_subject(one["metric"]): float(one["value"][1]) for one in series}
        asked = {subject: target for subject, target in told.items() if math.isfinite(target)}
        strangers = sorted(subject.name for subject in set(asked) - set(self.policies))
        if strangers:
            self._fail("unknown_service", repr(strangers))
        present = {str(one["metric"].get("tier", "")): round(float(one["value"][1])) for one in there}
        for subject, policy in self.policies.items():
            if subject in tiers and not entries[subject]:
                self._begin(subject, policy, present)
                continue
            count, target = self.recorded[subject], asked.get(subject)
            # Bounds hold whatever is asked for, or when nothing is.
            wanted = policy.next(count, count if target is None else target, _age(entries[subject]))
            if wanted != count:
                self._change(subject, count, wanted)
        return dead

    def _begin(self, tier: Subject, policy: Policy, present: dict[str, int]) -> None:
        """Record as many hosts as there are, where there is no record yet: fewer would go at once."""
        count = min(max(present.get(tier.name, 0), policy.least), policy.most)
        if present.get(tier.name) and not self.config["dry_run"]:
            by, reason = f"autoscaler on {self.config['host']}", "as many as there are"
            self.record.scale(tier.name, count, by=by, reason=reason, seen=0, folder=tier.folder)
            LOGGER.info(json.dumps({"event": "begin", tier.kind: tier.name, "hosts": count}))

    def _change(self, subject: Subject, count: int, wanted: int) -> None:
        policy = self.policies[subject]
        reason = self._reason(subject) if policy.least <= count <= policy.most else BOUNDS
        way = "up" if wanted > count else "down"
        said = {"event": "scale", subject.kind: subject.name, "from": count, "to": wanted, "reason": reason}
        if self.config["dry_run"]:
            self._say(subject, json.dumps(said | {"event": "would scale"}))
            return
        by = f"autoscaler on {self.config['host']}"
        seen = self._seen[subject]
        if self.record.scale(subject.name, wanted, by=by, reason=reason, seen=seen, folder=subject.folder):
            LOGGER.info(json.dumps(said))
            self.decisions[subject, way] += 1
            self.recorded[subject], self.reasons[subject] = wanted, reason

    def _reason(self, subject: Subject) -> str:
        """Return what each metric of a policy said, in words."""
        try:
            ratios = self.prometheus.ask(f"{METRICS}{{{subject.label}}}")
        except UnknownError:
            ratios = []
        told = [f"{one['metric']['metric']} is {float(one['value'][1]):.2f} of its target" for one in ratios]
        return ", ".join(sorted(told)) or BOUNDS

    def _fail(self, kind: str, why: str) -> None:
        self.failures[kind] += 1
        self._say(kind, json.dumps({"event": "failure", "kind": kind, "why": why}))

    def _say(self, what: object, words: str) -> None:
        """Write a line where it is another than the last one of its kind."""
        if words and self._said.get(what) != words:
            LOGGER.warning(words)
        self._said[what] = words

    @property
    def _fresh(self) -> bool:
        """Return whether what was read lately is what there is: else it may have been changed since."""
        return time.time() - self.round_at < FRESH_SECONDS

    def _tiers(self, dead: set[str] | None) -> dict[str, Any]:
        """Return what there is to be of each tier that has a record."""
        known = None if dead is None or self.config["dry_run"] else sorted(dead)
        return {
            tier.name: {
                "hosts": self.recorded[tier],
                "most": self.policies[tier].most,
                "reason": self.reasons[tier],
                "dead": known,
            }
            for tier in self.policies
            if tier.kind == "tier" and self._seen[tier]
        }

    def hosts(self) -> dict[str, Any]:
        """Return what is to be carried out where hosts are made and removed; `active` says whether this one is to be believed.

        Of each tier the number of `hosts`, the `most` that there may be, the `reason` and the names of `dead` ones, null where they
        are not known.
        """
        return self.told | {"active": self.told["active"] and self._fresh}

    def figures(self) -> Iterator[str]:
        """Tell what Prometheus asks for, a line each."""
        yield f"freehold_autoscaler_active {int(self.leadership.held)}"
        yield f"freehold_autoscaler_round_timestamp_seconds {self.round_at:.3f}"
        yield f"freehold_autoscaler_dry_run {int(self.config['dry_run'])}"
        for kind, failed in self.failures.items():
            yield f'freehold_autoscaler_failures_total{{kind="{kind}"}} {failed}'
        for subject, policy in self.policies.items():
            if self._fresh:
                yield f"freehold_{subject.counted}_recorded{{{subject.label}}} {self.recorded[subject]}"
            yield f"freehold_{subject.counted}_least{{{subject.label}}} {policy.least}"
            yield f"freehold_{subject.counted}_most{{{subject.label}}} {policy.most}"
        for (subject, way), decided in self.decisions.items():
            yield f'freehold_autoscaler_decisions_total{{{subject.label},direction="{way}"}} {decided}'


def _subject(labels: dict[str, str]) -> Subject:
    """Return what a series of Prometheus's answer is about."""
    kind = "tier" if labels.get("__name__") == "freehold:hosts_target" else "service"
    return Subject(kind, str(labels.get(kind, "")))


def _age(entry: dict[str, Any]) -> float:
    """Return for how many seconds a number stands."""
    if not entry:
        return float("inf")
    return (datetime.now(UTC) - datetime.fromisoformat(entry["at"])).total_seconds()


class Figures(BaseHTTPRequestHandler):
    """What the host proxy passes on from Prometheus, and what is asked on this host about hosts."""

    autoscaler: Autoscaler

    def do_GET(self) -> None:
        """Answer with figures, or with the hosts that there are to be."""
        if self.path == "/hosts":
            self._answer("application/json", json.dumps(self.autoscaler.hosts()) + "\n")
        else:
            self._answer("text/plain; version=0.0.4", "".join(f"{line}\n" for line in self.autoscaler.figures()))

    def _answer(self, kind: str, text: str) -> None:
        data = text.encode()
        self.send_response(http.client.OK)
        self.send_header("Content-Type", kind)
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
