"""The record, kept in etcd, of the image that each service runs."""

from __future__ import annotations

import base64
import http.client
import json
import random
import ssl
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

PREFIX = "/freehold/services/"
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


class Record:
    """etcd's JSON gateway, by whichever member answers."""

    def __init__(self, connection: dict[str, Any]) -> None:
        self._connection = connection
        self._token = ""

    def image(self, service: str) -> str:
        """Return the image that a service runs, empty where none is recorded."""
        answer = self._call("/v3/kv/range", {"key": _encode(f"{PREFIX}{service}/image")})
        pairs = answer.get("kvs", [])
        return _decode(pairs[0]["value"]) if pairs else ""

    def history(self, service: str) -> list[dict[str, str]]:
        """Return each change of a service's image, the oldest first: `image`, the one `before`, when (`at`, UTC) and `by` whom."""
        entries = [json.loads(value) for value in self._below(f"{PREFIX}{service}/history/").values()]
        return sorted(entries, key=lambda entry: str(entry["at"]))

    def images(self) -> dict[str, str]:
        """Return the image of each service that was ever recorded, also of those that are no more."""
        found = [(key.removeprefix(PREFIX).partition("/"), value) for key, value in self._below(PREFIX).items()]
        return {name: value for (name, _, rest), value in found if rest == "image"}

    def _below(self, folder: str) -> dict[str, str]:
        """Return what a folder has, by key; its last character is a slash, whose successor is 0."""
        answer = self._call("/v3/kv/range", {"key": _encode(folder), "range_end": _encode(folder[:-1] + "0")})
        return {_decode(pair["key"]): _decode(pair["value"]) for pair in answer.get("kvs", [])}

    def write(self, service: str, image: str, by: str) -> bool:
        """Record an image, and the change in the service's history; say whether it was another before."""
        before = self.image(service)
        if before == image:
            return False
        self._put_all(_change(service, image, before, by), [])
        return True

    def write_first(self, service: str, image: str, by: str) -> None:
        """Record the image of a service that has no record; another host's record stands."""
        condition = {"key": _encode(f"{PREFIX}{service}/image"), "target": "CREATE", "create_revision": "0"}
        self._put_all(_change(service, image, "", by), [condition])

    def _put_all(self, values: dict[str, str], conditions: list[dict[str, str]]) -> None:
        puts = [{"request_put": {"key": _encode(key), "value": _encode(value)}} for key, value in values.items()]
        self._call("/v3/kv/txn", {"compare": conditions, "success": puts})

    def _call(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Return the answer of the first member that gives one."""
        endpoints = list(self._connection["endpoints"])
        random.shuffle(endpoints)
        problems = []
        for endpoint in endpoints:
            try:
                if not self._token:
                    self._token = self._authenticate(endpoint)
                return self._post(endpoint, path, body)
            except (OSError, http.client.HTTPException, ValueError) as error:
                self._token = ""
                problems.append(f"{endpoint}: {error}")
        raise RecordUnreachableError("; ".join(problems))

    def _authenticate(self, endpoint: str) -> str:
        credentials = {"name": self._connection["user"], "password": self._connection["password"]}
        return str(self._post(endpoint, "/v3/auth/authenticate", credentials)["token"])

    def _post(self, endpoint: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        tls = ssl.create_default_context(cafile=self._connection["ca_file"])
        tls.load_cert_chain(self._connection["certificate"], self._connection["key"])
        headers = {"Content-Type": "application/json"} | ({"Authorization": self._token} if self._token else {})
        with closing(http.client.HTTPSConnection(endpoint, timeout=TIMEOUT_SECONDS, context=tls)) as line:
            line.request("POST", path, json.dumps(body), headers)
            answer = line.getresponse()
            text = answer.read().decode(errors="replace")
        result: dict[str, Any] = json.loads(text)
        if answer.status != http.client.OK:
            raise PermissionError(result.get("message") or result.get("error") or text)
        return result


def _change(service: str, image: str, before: str, by: str) -> dict[str, str]:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    entry = json.dumps({"image": image, "before": before, "at": now, "by": by})
    return {f"{PREFIX}{service}/image": image, f"{PREFIX}{service}/history/{now}": entry}


def _encode(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _decode(text: str) -> str:
    return base64.b64decode(text).decode()
