"""The record, kept in etcd, of the image that each service runs, and of how many replicas where that follows the load."""

from __future__ import annotations

import base64
import http.client
import json
import random
import ssl
from datetime import UTC, datetime
from typing import Any

PREFIX = "/freehold/services/"
SCALING = "/freehold/scaling/replicas/"
HOSTS = "/freehold/scaling/hosts/"
TIMEOUT_SECONDS = 3

ARGUMENTS: dict[str, Any] = {
    "type": "dict",
    "required": True,
    "options": {
        "endpoints": {"type": "list", "elements": "str", "required": True},
        "user": {"type": "str", "required": True},
        "password": {"type": "str", "required": True, "no_log": True},
        "ca_file": {"type": "path", "required": True},
        "certificate": {"type": "path", "required": True},
        "key": {"type": "path", "required": True, "no_log": False},
    },
}


class RecordUnreachableError(Exception):
    """No member of etcd gave a usable answer."""


class ChangedMeanwhileError(Exception):
    """Somebody else changed what was to be changed."""


class Etcd:
    """etcd's JSON gateway, by whichever member answers; a token is asked for once and again where it has run out."""

    def __init__(self, connection: dict[str, Any]) -> None:
        self._connection = connection
        self._token = ""
        self._lines: dict[str, http.client.HTTPSConnection] = {}

    def below(self, folder: str) -> dict[str, str]:
        """Return what a folder has, by key; its last character is a slash, whose successor is 0."""
        answer = self.call("/v3/kv/range", {"key": encode(folder), "range_end": encode(folder[:-1] + "0")})
        return {decode(pair["key"]): decode(pair["value"]) for pair in answer.get("kvs", [])}

    def call(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Return the answer of the first member that gives one."""
        others = [endpoint for endpoint in self._connection["endpoints"] if endpoint not in self._lines]
        random.shuffle(others)
        problems = []
        for endpoint in [*self._lines, *others]:
            try:
                if not self._token:
                    self._token = self.authenticate(endpoint)
                return self.post(endpoint, path, body)
            except (OSError, http.client.HTTPException, ValueError) as error:
                self._token = ""
                problems.append(f"{endpoint}: {error}")
        raise RecordUnreachableError("; ".join(problems))

    def authenticate(self, endpoint: str) -> str:
        """Return a token of the user at a member."""
        credentials = {"name": self._connection["user"], "password": self._connection["password"]}
        return str(self.post(endpoint, "/v3/auth/authenticate", credentials)["token"])

    def post(self, endpoint: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Return what a member answers; raise OSError, HTTPException or ValueError where it gives no answer of use."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": self._token} if self._token else {})
        line = self._lines.pop(endpoint, None) or self.open(endpoint)
        try:
            line.request("POST", path, json.dumps(body), headers)
            answer = line.getresponse()
            text = answer.read().decode(errors="replace")
            result: dict[str, Any] = json.loads(text)
        except BaseException:
            line.close()
            raise
        self._lines[endpoint] = line
        if answer.status != http.client.OK:
            raise PermissionError(result.get("message") or result.get("error") or text)
        return result

    def endpoint(self) -> str:
        """Return the member that answered last, or any."""
        return next(iter(self._lines), "") or random.choice(self._connection["endpoints"])  # noqa: S311  (no secret)

    def open(self, endpoint: str, seconds: float = TIMEOUT_SECONDS) -> http.client.HTTPSConnection:
        """Return a connection to a member, made when it is first used."""
        tls = ssl.create_default_context(cafile=self._connection["ca_file"])
        tls.load_cert_chain(self._connection["certificate"], self._connection["key"])
        return http.client.HTTPSConnection(endpoint, timeout=seconds, context=tls)

    def close(self) -> None:
        """End what is open."""
        while self._lines:
            self._lines.popitem()[1].close()


class Record(Etcd):
    """What services run."""

    def image(self, service: str) -> str:
        """Return the image that a service runs, empty where none is recorded."""
        answer = self.call("/v3/kv/range", {"key": encode(f"{PREFIX}{service}/image")})
        pairs = answer.get("kvs", [])
        return decode(pairs[0]["value"]) if pairs else ""

    def history(self, service: str) -> list[dict[str, str]]:
        """Return each change of a service's image, the oldest first: `image`, the one `before`, when (`at`, UTC) and `by` whom."""
        entries = [json.loads(value) for value in self.below(f"{PREFIX}{service}/history/").values()]
        return sorted(entries, key=lambda entry: str(entry["at"]))

    def images(self) -> dict[str, str]:
        """Return the image of each service that was ever recorded, also of those that are no more."""
        found = [(key.removeprefix(PREFIX).partition("/"), value) for key, value in self.below(PREFIX).items()]
        return {name: value for (name, _, rest), value in found if rest == "image"}

    def write(self, service: str, image: str, by: str) -> bool:
        """Record an image, and the change in the service's history; say whether it was another before."""
        before = self.image(service)
        if before == image:
            return False
        self._put_all(_change(service, image, before, by), [])
        return True

    def write_first(self, service: str, image: str, by: str) -> None:
        """Record the image of a service that has no record; another host's record stands."""
        condition = {"key": encode(f"{PREFIX}{service}/image"), "target": "CREATE", "create_revision": "0"}
        self._put_all(_change(service, image, "", by), [condition])

    def _put_all(self, values: dict[str, str], conditions: list[dict[str, str]]) -> None:
        puts = [{"request_put": {"key": encode(key), "value": encode(value)}} for key, value in values.items()]
        self.call("/v3/kv/txn", {"compare": conditions, "success": puts})

    def replicas(self) -> dict[str, int]:
        """Return how many replicas, over all hosts, each service is to have whose number was ever set."""
        return {name: entry["replicas"] for name, entry in self.scalings().items()}

    def scalings(self, folder: str = SCALING) -> dict[str, dict[str, Any]]:
        """Return of each service that was ever scaled, or of each tier (HOSTS), what the record has.

        That are `replicas` or `hosts`, how many were `before`, since when (`at`, UTC), `by` whom and the `reason`.
        """
        return {key.removeprefix(folder): json.loads(value) for key, value in self.below(folder).items()}

    def scale(
        self, name: str, count: int, *, by: str, reason: str, seen: int | None = None, folder: str = SCALING
    ) -> bool:
        """Record how many replicas a service, or hosts a tier, is to have; say whether it was another number, or none, before.

        `seen` is the number that the decision goes by, 0 for none. Another's change in between raises ChangedMeanwhileError.
        """
        counted = {SCALING: "replicas", HOSTS: "hosts"}[folder]
        key = encode(f"{folder}{name}")
        pairs = self.call("/v3/kv/range", {"key": key}).get("kvs", [])
        before = json.loads(decode(pairs[0]["value"]))[counted] if pairs else 0
        if seen not in {None, before}:
            raise ChangedMeanwhileError(
                f"the number of {counted} of {name} was changed from {seen} to {before} meanwhile"
            )
        if before == count:
            return False
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        entry = {counted: count, "before": before, "at": now, "by": by, "reason": reason}
        revision = pairs[0]["mod_revision"] if pairs else "0"
        condition = {"key": key, "target": "MOD", "mod_revision": revision}
        put = {"request_put": {"key": key, "value": encode(json.dumps(entry))}}
        if not self.call("/v3/kv/txn", {"compare": [condition], "success": [put]}).get("succeeded"):
            raise ChangedMeanwhileError(f"the number of {counted} of {name} was changed meanwhile")
        return True


def _change(service: str, image: str, before: str, by: str) -> dict[str, str]:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    entry = json.dumps({"image": image, "before": before, "at": now, "by": by})
    return {f"{PREFIX}{service}/image": image, f"{PREFIX}{service}/history/{now}": entry}


def encode(text: str) -> str:
    """Return a text as etcd's gateway takes it."""
    return base64.b64encode(text.encode()).decode()


def decode(text: str) -> str:
    """Return the text in what etcd's gateway gives."""
    return base64.b64decode(text).decode()
