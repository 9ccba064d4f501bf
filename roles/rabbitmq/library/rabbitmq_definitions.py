#!/usr/bin/python
"""Bring virtual hosts, users, permissions, policies, exchanges, queues and bindings to what is wanted."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pwd
import secrets
import tempfile
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.rabbitmq_spread import Api, ApiError

DOCUMENTATION = r"""
module: rabbitmq_definitions
short_description: Import into a RabbitMQ cluster what differs from the wanted definitions
description:
  - Runs on one host for all. What the cluster has is compared, and only what differs is imported. A password is compared by
    the salt of the stored hash, so an unchanged one changes nothing.
  - Queues are declared through the node that they belong to, so that their first leader is there. A queue or exchange that
    exists with another type or other arguments is refused, and nothing is deleted but C(absent_users) and permissions that
    a wanted user should not have.
  - Where the administrator cannot log in (a new cluster, or a changed password), it is set by the broker's own program.
options:
  name:
    description: Name of this host, whose broker is asked.
    type: str
    required: true
  addresses:
    description: Address of each host of the cluster, by name.
    type: dict
    required: true
  port:
    description: Port of the management interface.
    type: int
    default: 15671
  user:
    description: The administrator.
    type: str
    required: true
  password:
    description: Its password.
    type: str
    required: true
  ca_file:
    description: Certificate of the CA that signed the brokers' certificates.
    type: path
    required: true
  vhosts:
    description: Names of the virtual hosts; their queues are quorum queues unless they say otherwise.
    type: list
    elements: str
    required: true
  users:
    description: Users, each with C(name), C(password), C(tags) and C(permissions), a list of C(vhost), C(configure), C(write), C(read).
    type: list
    elements: dict
    required: true
  absent_users:
    description: Users to delete.
    type: list
    elements: str
    default: []
  policies:
    description: Policies as the management interface takes them.
    type: list
    elements: dict
    default: []
  exchanges:
    description: Durable exchanges, each with C(vhost), C(name), C(type).
    type: list
    elements: dict
    default: []
  queues:
    description: Queues, each with C(vhost), C(name), C(host), the host that its leader belongs to (may be empty), and C(type),
      quorum (if it is missing) or stream.
    type: list
    elements: dict
    default: []
  bindings:
    description: Bindings of queues, each with C(vhost), C(source), C(destination), C(routing_key).
    type: list
    elements: dict
    default: []
  timeout:
    description: Seconds to wait until the brokers run and have elected leaders.
    type: int
    default: 60
"""

EXAMPLES = r"""
- name: Import what differs
  rabbitmq_definitions:
    name: "{{ inventory_hostname }}"
    addresses: {data1: 10.0.0.1, data2: 10.0.0.2, data3: 10.0.0.3}
    user: admin
    password: "{{ rabbitmq_admin_password }}"
    ca_file: "{{ topology_ca_file }}"
    vhosts: [orders]
    users: [{name: orders, password: "{{ orders_rabbitmq_password }}", tags: [], permissions: []}]
    queues: [{vhost: orders, name: intake-1, host: data1}]
  run_once: true
"""

RETURN = r"""
actions:
  description: What was changed, or in check mode would be.
  returned: always
  type: list
"""

Key = tuple[str, ...]
HASH = "rabbit_password_hashing_sha256"
CONTROL = "/usr/sbin/rabbitmqctl"


def password_hash(password: str) -> str:
    """Return RabbitMQ's salted hash of a password, with a new salt."""
    salt = secrets.token_bytes(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def password_matches(password: str, stored: str) -> bool:
    """Tell whether a stored hash is of this password."""
    raw = base64.b64decode(stored or "")
    return len(raw) > 4 and secrets.compare_digest(raw[4:], hashlib.sha256(raw[:4] + password.encode()).digest())


class Definitions:
    """The wanted definitions beside those of the cluster."""

    def __init__(self, module: AnsibleModule) -> None:
        self._module = module
        self._wanted: dict[str, Any] = module.params
        self._check = bool(module.check_mode)
        self._api = self._connect(module.params["name"])
        self.actions: list[str] = []

    def converge(self) -> None:
        """Import what differs, in the order in which things need each other."""
        present = self._present()
        first = {
            "vhosts": self._vhosts(present),
            "users": self._users(present),
            "permissions": self._permissions(present),
            "policies": self._policies(present),
            "exchanges": self._exchanges(present),
        }
        self._import({kind: entries for kind, entries in first.items() if entries})
        self._queues(present)
        bindings = self._bindings(present)
        self._import({"bindings": bindings} if bindings else {})
        self._remove(present)

    def _connect(self, host: str) -> Api:
        return Api(
            self._wanted["addresses"][host],
            self._wanted["port"],
            user=self._wanted["user"],
            password=self._wanted["password"],
            ca_file=self._wanted["ca_file"],
            timeout=30,
        )

    def _present(self) -> dict[str, Any]:
        try:
            return dict(self._api.get("definitions"))
        except ApiError as error:
            if error.status != 401:
                raise
        self.actions.append(f"user {self._wanted['user']} can log in")
        if self._check:
            return {}
        administrator = {
            "name": self._wanted["user"],
            "password_hash": password_hash(self._wanted["password"]),
            "hashing_algorithm": HASH,
            "tags": ["administrator"],
            "limits": {},
        }
        self._import_locally({"users": [administrator]})
        end = time.monotonic() + self._wanted["timeout"]
        while True:
            try:
                return dict(self._api.get("definitions"))
            except ApiError:
                if time.monotonic() > end:
                    raise
                time.sleep(1)

    def _import_locally(self, definitions: dict[str, Any]) -> None:
        """Import by the program that needs no log-in but the right to run as the broker's user."""
        owner = pwd.getpwnam("rabbitmq")
        descriptor, path = tempfile.mkstemp(dir="/var/lib/rabbitmq", suffix=".json")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(definitions, file)
            os.chown(path, owner.pw_uid, owner.pw_gid)
            self._module.run_command([CONTROL, "import_definitions", path], check_rc=True)
        finally:
            os.unlink(path)

    def _import(self, definitions: dict[str, list[dict[str, Any]]]) -> None:
        if definitions and not self._check:
            self._api.call("POST", "definitions", body=definitions)

    def _vhosts(self, present: dict[str, Any]) -> list[dict[str, Any]]:
        known = {vhost["name"]: vhost for vhost in present.get("vhosts", [])}
        wanted = []
        for name in self._wanted["vhosts"]:
            metadata = known.get(name, {}).get("metadata", {})
            if metadata.get("default_queue_type") != "quorum":
                self.actions.append(f"virtual host {name}")
                wanted.append({"name": name, "metadata": {**metadata, "default_queue_type": "quorum"}})
        return wanted

    def _users(self, present: dict[str, Any]) -> list[dict[str, Any]]:
        known = {user["name"]: user for user in present.get("users", [])}
        changed = []
        for user in self._wanted["users"]:
            stored = known.get(user["name"], {})
            same_password = password_matches(user["password"], stored.get("password_hash", ""))
            if same_password and set(stored.get("tags", [])) == set(user.get("tags") or []):
                continue
            self.actions.append(f"user {user['name']}")
            changed.append(
                {
                    "name": user["name"],
                    "password_hash": stored["password_hash"] if same_password else password_hash(user["password"]),
                    "hashing_algorithm": HASH,
                    "tags": list(user.get("tags") or []),
                    "limits": stored.get("limits", {}),
                }
            )
        return changed

    def _permissions(self, present: dict[str, Any]) -> list[dict[str, Any]]:
        wanted = [
            {"user": user["name"], **{key: permission[key] for key in ("vhost", "configure", "write", "read")}}
            for user in self._wanted["users"]
            for permission in user.get("permissions") or []
        ]
        return [
            entry
            for entry in wanted
            if self._differs(present, "permissions", entry, key=("user", "vhost"), label="permissions of")
        ]

    def _policies(self, present: dict[str, Any]) -> list[dict[str, Any]]:
        return [
            entry
            for entry in self._wanted["policies"]
            if self._differs(present, "policies", entry, key=("vhost", "name"), label="policy")
        ]

    def _exchanges(self, present: dict[str, Any]) -> list[dict[str, Any]]:
        wanted = [
            {**exchange, "durable": True, "auto_delete": False, "internal": False, "arguments": {}}
            for exchange in self._wanted["exchanges"]
        ]
        return [
            entry
            for entry in wanted
            if self._differs(present, "exchanges", entry, key=("vhost", "name"), label="exchange", fixed=True)
        ]

    def _bindings(self, present: dict[str, Any]) -> list[dict[str, Any]]:
        wanted = [{"arguments": {}, "destination_type": "queue", **binding} for binding in self._wanted["bindings"]]
        key = ("vhost", "source", "destination", "destination_type", "routing_key")
        return [entry for entry in wanted if self._differs(present, "bindings", entry, key=key, label="binding")]

    def _queues(self, present: dict[str, Any]) -> None:
        for queue in self._wanted["queues"]:
            entry = {
                "vhost": queue["vhost"],
                "name": queue["name"],
                "durable": True,
                "auto_delete": False,
                "arguments": {"x-queue-type": queue.get("type") or "quorum"},
            }
            if not self._differs(present, "queues", entry, key=("vhost", "name"), label="queue", fixed=True):
                continue
            if not self._check:
                body = {key: entry[key] for key in ("durable", "auto_delete", "arguments")}
                self._declare(queue, body)

    def _declare(self, queue: dict[str, Any], body: dict[str, Any]) -> None:
        """Declare a queue at its own broker, since the first leader is where it is declared; else at this one."""
        host = queue.get("host") or self._wanted["name"]
        try:
            self._connect(host).call("PUT", "queues", queue["vhost"], queue["name"], body=body)
        except ApiError as error:
            if error.status or host == self._wanted["name"]:
                raise
            self._module.warn(f"{queue['name']} is declared at {self._wanted['name']}: {error}")
            self._api.call("PUT", "queues", queue["vhost"], queue["name"], body=body)

    def _differs(
        self, present: dict[str, Any], kind: str, entry: dict[str, Any], *, key: Key, label: str, fixed: bool = False
    ) -> bool:
        """Tell whether the cluster lacks an entry or has another; refuse where what differs is fixed at its birth."""
        place = tuple(entry[name] for name in key)
        known = next((item for item in present.get(kind, []) if tuple(item.get(name) for name in key) == place), None)
        if known is not None:
            other = sorted(name for name, value in entry.items() if known.get(name) != value)
            if not other:
                return False
            if fixed:
                self._module.fail_json(
                    msg=f"{label} {' '.join(place)} exists with another {', '.join(other)} ("
                    + ", ".join(f"{name}: {known.get(name)} instead of {entry[name]}" for name in other)
                    + "), which cannot be changed. Move its messages and delete it, or set the variable to what there is.",
                    actions=self.actions,
                )
        self.actions.append(f"{label} {' '.join(place)}")
        return True

    def _remove(self, present: dict[str, Any]) -> None:
        users = {user["name"] for user in self._wanted["users"]}
        allowed = {
            (user["name"], permission["vhost"])
            for user in self._wanted["users"]
            for permission in user.get("permissions") or []
        }
        for permission in present.get("permissions", []):
            place = (permission["user"], permission["vhost"])
            if permission["user"] in users and place not in allowed:
                self.actions.append(f"no permissions of {' '.join(place)}")
                if not self._check:
                    self._api.call("DELETE", "permissions", permission["vhost"], permission["user"])
        known = {user["name"] for user in present.get("users", [])}
        for name in sorted(known & set(self._wanted["absent_users"])):
            self.actions.append(f"no user {name}")
            if not self._check:
                self._api.call("DELETE", "users", name)


def main() -> None:
    """Run the module."""
    lists = {name: {"type": "list", "elements": "dict", "default": []} for name in ("policies", "exchanges", "queues")}
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "addresses": {"type": "dict", "required": True},
            "port": {"type": "int", "default": 15671},
            "user": {"type": "str", "required": True},
            "password": {"type": "str", "required": True, "no_log": True},
            "ca_file": {"type": "path", "required": True},
            "vhosts": {"type": "list", "elements": "str", "required": True},
            "users": {"type": "list", "elements": "dict", "required": True, "no_log": True},
            "absent_users": {"type": "list", "elements": "str", "default": []},
            **lists,
            "bindings": {"type": "list", "elements": "dict", "default": []},
            "timeout": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    actions: list[str] = []
    try:
        definitions = Definitions(module)
        actions = definitions.actions
        definitions.converge()
    except (ApiError, OSError) as error:
        if module.check_mode and not getattr(error, "status", 0):
            module.exit_json(changed=True, actions=[f"the broker does not run yet ({error})"])
        module.fail_json(msg=str(error), actions=actions)
    module.exit_json(changed=bool(actions), actions=actions)


if __name__ == "__main__":
    main()
