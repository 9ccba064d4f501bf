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
        return base64.b64decode(pairs[0]["value"]).decode() if pairs else ""

    def write(self, service: str, image: str) -> bool:
        """Record an image, and the change in the service's history; say whether it was another before."""
        before = self.image(service)
        if before == image:
            return False
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        entry = json.dumps({"image": image, "before": before, "at": now})
        self._put_all({f"{PREFIX}{service}/image": image, f"{PREFIX}{service}/history/{now}": entry}, [])
        return True

    def write_first(self, service: str, image: str) -> None:
        """Record the image of a service that has no record; another host's record stands."""
        key = f"{PREFIX}{service}/image"
        self._put_all({key: image}, [{"key": _encode(key), "target": "CREATE", "create_revision": "0"}])

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


def _encode(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
