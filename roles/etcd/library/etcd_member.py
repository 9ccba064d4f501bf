#!/usr/bin/python
"""One member of an etcd cluster: form, join, replace, restart, and the users that may use it."""

from __future__ import annotations

import base64
import functools
import http.client
import json
import os
import ssl
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: etcd_member
short_description: Make this host a member of the etcd cluster, once and for all
description:
  - C(look) says whether this member has data and whether it runs.
  - C(present) starts a member that has data. One without data founds the cluster together with the others if C(may_found),
    and otherwise takes the place of the member that was lost, which it first removes from the cluster. Then it waits until
    the member is healthy, turns authentication on, and makes users what C(users) says.
  - C(restarted) refuses unless every other member is healthy, gives the leadership away, restarts this member and waits until
    it has caught up.
options:
  state: {type: str, choices: [look, present, restarted], required: true}
  connection:
    description: How to reach the cluster.
    type: dict
    required: true
    suboptions:
      name: {description: Name of this member., type: str, required: true}
      members: {description: Addresses of all members by name., type: dict, required: true}
      client_port: {type: int, required: true}
      peer_port: {type: int, required: true}
      ca_file: {type: path, required: true}
      certificate: {type: path, required: true}
      key: {type: path, required: true}
      data_dir: {type: path, required: true}
      timeout: {description: Seconds for everything., type: int, required: true}
  join_file: {description: Environment file that lets etcd start without data., type: path}
  may_found: {description: Whether no member at all has data., type: bool, default: false}
  token: {description: Token of a cluster that is founded., type: str}
  root_password: {type: str}
  users: {description: "Users: C(name), C(password), C(prefix), C(access). Others are removed. Empty leaves users alone.", type: list, elements: dict}
"""

RETURN = r"""
data: {description: Whether the member had data before., type: bool, returned: always}
running: {description: Whether it ran before., type: bool, returned: always}
did: {description: What was changed, as words., type: list, returned: always}
"""

READ_WRITE = "READWRITE"


class ApiError(Exception):
    """What etcd answered instead of a result."""


class Gateway:
    """etcd's JSON gateway: one call at a time, with this member's certificate and, once known, a token."""

    def __init__(self, connection: dict[str, Any]) -> None:
        self._addresses: dict[str, str] = connection["members"]
        self._port: int = connection["client_port"]
        self._tls = ssl.create_default_context(cafile=connection["ca_file"])
        self._tls.load_cert_chain(connection["certificate"], connection["key"])
        self._token = ""

    def _ask(self, member: str, method: str, path: str, body: str | None, timeout: float) -> tuple[int, str]:
        headers = {"Content-Type": "application/json"} | ({"Authorization": self._token} if self._token else {})
        address = self._addresses[member]
        with closing(http.client.HTTPSConnection(address, self._port, timeout=timeout, context=self._tls)) as line:
            line.request(method, path, body, headers)
            answer = line.getresponse()
            return answer.status, answer.read().decode(errors="replace")

    def post(self, member: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return a member's answer; raise ApiError with its words, or OSError where nobody answers."""
        status, text = self._ask(member, "POST", path, json.dumps(body or {}), timeout=10)
        try:
            result: dict[str, Any] = json.loads(text)
        except ValueError as error:
            raise ApiError(f"HTTP {status}: {text}") from error
        if status != 200:
            raise ApiError(result.get("error", text))
        return result

    def is_healthy(self, member: str) -> bool:
        """Return whether a member takes part in the cluster, which etcd finds out by a read of its own."""
        try:
            status, text = self._ask(member, "GET", "/health", None, timeout=3)
            return status == 200 and json.loads(text).get("health") == "true"
        except (OSError, http.client.HTTPException, ValueError):
            return False

    def authenticate(self, member: str, user: str, password: str) -> bool:
        """Return whether etcd wants a password at all and takes this one; raise ApiError if it refuses it."""
        self._token = ""
        try:
            self._token = self.post(member, "/v3/auth/authenticate", {"name": user, "password": password})["token"]
        except ApiError as error:
            if "authentication is not enabled" in str(error):
                return False
            raise
        return True


class Member:
    """The member on this host, and the cluster as it sees it."""

    def __init__(self, module: AnsibleModule) -> None:
        self._module = module
        self._params: dict[str, Any] = module.params
        self._connection: dict[str, Any] = module.params["connection"]
        self._name: str = self._connection["name"]
        self._members: dict[str, str] = self._connection["members"]
        self._others = [name for name in sorted(self._members) if name != self._name]
        self._timeout: int = self._connection["timeout"]
        self._deadline = time.monotonic() + self._timeout
        self.did: list[str] = []
        self.has_data = os.path.isdir(os.path.join(self._connection["data_dir"], "member"))
        self.is_running = self._systemctl("is-active", "--quiet") == 0

    @functools.cached_property
    def _gateway(self) -> Gateway:
        return Gateway(self._connection)

    def _systemctl(self, *words: str) -> int:
        code: int = self._module.run_command(["systemctl", *words, "etcd.service"])[0]
        return code

    def _must(self, *words: str) -> None:
        self._module.run_command(["systemctl", *words, "etcd.service"], check_rc=True)

    def _fail(self, text: str) -> None:
        self._module.fail_json(msg=f"etcd: {text}", did=self.did)

    def _wait(self, what: str, holds: Callable[[], bool]) -> None:
        while not holds():
            if time.monotonic() > self._deadline:
                log = self._module.run_command(["journalctl", "-u", "etcd", "-n", "5", "-o", "cat", "--no-pager"])[1]
                self._fail(f"after {self._timeout} s {what}. Its last words: {log.strip()}")
            time.sleep(0.3)

    def present(self) -> None:
        """Be a running, healthy member."""
        if not self.has_data:
            self.did.append("founded the cluster" if self._params["may_found"] else "joined the cluster")
        elif not self.is_running:
            self.did.append("started")
        if self._systemctl("is-enabled", "--quiet") != 0:
            self.did.append("enabled")
        if self._module.check_mode:
            if not self.is_running:
                return
        else:
            self._start()
        if self._params["users"]:
            self._users()

    def _start(self) -> None:
        if "enabled" in self.did:
            self._must("enable")
        join_file = self._params["join_file"]
        if not self.has_data:
            cluster = self._members if self._params["may_found"] else self._take_place()
            peers = ",".join(f"{name}={self._peer_url(address)}" for name, address in sorted(cluster.items()))
            state = "new" if self._params["may_found"] else "existing"
            os.makedirs(os.path.dirname(join_file), exist_ok=True)
            with open(join_file, "w", encoding="ascii") as file:
                file.write(f"ETCD_INITIAL_CLUSTER={peers}\nETCD_INITIAL_CLUSTER_STATE={state}\n")
                file.write(f"ETCD_INITIAL_CLUSTER_TOKEN={self._params['token']}\n")
        if not self.is_running:
            # etcd calls itself started once it has a quorum, which the other hosts are about to bring.
            self._must("--no-block", "start")
        self._wait(
            f"{self._name} is not healthy (a quorum of {', '.join(sorted(self._members))} must run)",
            lambda: self._gateway.is_healthy(self._name),
        )
        if not self.has_data:
            os.unlink(join_file)

    def _peer_url(self, address: str) -> str:
        return f"https://{address}:{self._connection['peer_port']}"

    def _take_place(self) -> dict[str, str]:
        """Add this host as a new member, without the one of its address that was lost; return addresses by name.

        The old member's votes are gone with its data, so its identity must not come back.
        """
        mine = self._peer_url(self._members[self._name])
        answers = [name for name in self._others if self._gateway.is_healthy(name)]
        if not answers:
            self._fail(
                f"{self._name} has no data and none of {', '.join(self._others)} answers, while at least one has data or was left "
                "out of this run. Start those first; nothing is founded over data."
            )
        peer = answers[0]
        self._root(peer)
        while True:
            try:
                for member in self._gateway.post(peer, "/v3/cluster/member/list")["members"]:
                    if mine in member["peerURLs"]:
                        self._gateway.post(peer, "/v3/cluster/member/remove", {"ID": member["ID"]})
                        self.did.append(f"removed the lost member {member['ID']}")
                members = self._gateway.post(peer, "/v3/cluster/member/add", {"peerURLs": [mine]})["members"]
                break
            except ApiError as error:
                # One joins after another: etcd takes no further member before the last one has started.
                if "unhealthy" not in str(error) or time.monotonic() > self._deadline:
                    self._fail(f"{peer} does not let {self._name} join: {error}")
                time.sleep(1)
        urls = {self._peer_url(address): name for name, address in self._members.items()}
        cluster = {}
        for member in members:
            url = member["peerURLs"][0]
            cluster[member.get("name") or urls.get(url, "")] = url.split("//")[1].rsplit(":", 1)[0]
        return cluster

    def _root(self, member: str) -> bool:
        try:
            return self._gateway.authenticate(member, "root", self._params["root_password"])
        except ApiError as error:
            self._fail(
                f"{member} refuses root with etcd_root_password: {error}. Give it the password that the cluster has, or change that "
                "one with `etcdctl user passwd root`."
            )
        return False

    def _call(self, word: str, path: str, body: dict[str, Any]) -> None:
        self.did.append(word)
        if not self._module.check_mode:
            self._gateway.post(self._name, path, body)

    def _users(self) -> None:
        """Make users, roles and authentication what they should be."""
        enabled = self._root(self._name)
        users = set(self._gateway.post(self._name, "/v3/auth/user/list").get("users", []))
        roles = set(self._gateway.post(self._name, "/v3/auth/role/list").get("roles", []))
        for user in self._params["users"]:
            self._role(user["name"], user["prefix"], user["access"], known=user["name"] in roles)
            self._user(user["name"], user["password"], user["name"], known=user["name"] in users, enabled=enabled)
        wanted = {user["name"] for user in self._params["users"]} | {"root"}
        for name in sorted(users - wanted):
            self._call(f"removed the user {name}", "/v3/auth/user/delete", {"name": name})
        if not enabled:
            if "root" not in roles:
                self._call("made the role root", "/v3/auth/role/add", {"name": "root"})
            self._user("root", self._params["root_password"], "root", known="root" in users, enabled=False)
            self._call("turned authentication on", "/v3/auth/enable", {})

    def _role(self, name: str, prefix: str, access: str, *, known: bool) -> None:
        start = prefix.encode()
        key, end = (base64.b64encode(part).decode() for part in (start, start[:-1] + bytes([start[-1] + 1])))
        permission = {"key": key, "range_end": end} | ({} if access == "read" else {"permType": READ_WRITE})
        now: list[dict[str, str]] = []
        if known:
            now = self._gateway.post(self._name, "/v3/auth/role/get", {"role": name}).get("perm", [])
        else:
            self._call(f"made the role {name}", "/v3/auth/role/add", {"name": name})
        if permission not in now:
            self._call(f"let {name} use {prefix}", "/v3/auth/role/grant", {"name": name, "perm": permission})
        for other in now:
            if other != permission:
                body = {"role": name, "key": other.get("key"), "range_end": other.get("range_end")}
                self._call(f"took a permission from {name}", "/v3/auth/role/revoke", body)

    def _user(self, name: str, password: str, role: str, *, known: bool, enabled: bool) -> None:
        held: list[str] = []
        if not known:
            self._call(f"made the user {name}", "/v3/auth/user/add", {"name": name, "password": password})
        else:
            held = self._gateway.post(self._name, "/v3/auth/user/get", {"name": name}).get("roles", [])
            if not enabled or not self._takes(name, password):
                self._call(
                    f"set the password of {name}", "/v3/auth/user/changepw", {"name": name, "password": password}
                )
        if role not in held:
            self._call(f"gave {name} its role", "/v3/auth/user/grant", {"user": name, "role": role})
        for other in held:
            if other != role:
                self._call(f"took the role {other} from {name}", "/v3/auth/user/revoke", {"name": name, "role": other})

    def _takes(self, name: str, password: str) -> bool:
        try:
            return Gateway(self._connection).authenticate(self._name, name, password)
        except ApiError as error:
            if "authentication failed" not in str(error):
                raise
            return False

    def restarted(self) -> None:
        """Restart while the others hold the quorum; come back as up to date as they are."""
        self.did.append("restarted")
        if self._module.check_mode:
            return
        self._wait(
            "the other members are not healthy, so this one is not restarted",
            lambda: all(self._gateway.is_healthy(name) for name in self._others),
        )
        if self.is_running and self._others:
            status = self._gateway.post(self._name, "/v3/maintenance/status")
            if status["leader"] == status["header"]["member_id"]:
                self._give_away(status["leader"])
        self._must("restart")
        self._wait(f"{self._name} is not healthy", lambda: self._gateway.is_healthy(self._name))
        if self._others:
            other = self._others[0]
            self._wait(
                f"{self._name} has not caught up", lambda: self._applied(self._name) >= self._applied(other) - 100
            )

    def _applied(self, member: str) -> int:
        return int(self._gateway.post(member, "/v3/maintenance/status")["raftAppliedIndex"])

    def _give_away(self, leader: str) -> None:
        for member in self._gateway.post(self._name, "/v3/cluster/member/list", {"linearizable": False})["members"]:
            if member["ID"] != leader and not member.get("isLearner"):
                self._gateway.post(self._name, "/v3/maintenance/transfer-leadership", {"targetID": member["ID"]})
                self.did.insert(0, f"moved the leadership to {member['name']}")
                return


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["look", "present", "restarted"], "required": True},
            "connection": {
                "type": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "members": {"type": "dict", "required": True},
                    "client_port": {"type": "int", "required": True},
                    "peer_port": {"type": "int", "required": True},
                    "ca_file": {"type": "path", "required": True},
                    "certificate": {"type": "path", "required": True},
                    "key": {"type": "path", "required": True, "no_log": False},
                    "data_dir": {"type": "path", "required": True},
                    "timeout": {"type": "int", "required": True},
                },
            },
            "join_file": {"type": "path"},
            "may_found": {"type": "bool", "default": False},
            "token": {"type": "str", "no_log": False},
            "root_password": {"type": "str", "no_log": True},
            "users": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "prefix": {"type": "str", "required": True},
                    "access": {"type": "str", "choices": ["read", "readwrite"], "default": "readwrite"},
                    "password": {"type": "str", "required": True, "no_log": True},
                },
            },
        },
        supports_check_mode=True,
    )
    member = Member(module)
    try:
        if module.params["state"] == "present":
            member.present()
        elif module.params["state"] == "restarted":
            member.restarted()
    except (ApiError, OSError, http.client.HTTPException) as error:
        module.fail_json(msg=f"etcd: {error}", did=member.did)
    module.exit_json(changed=bool(member.did), data=member.has_data, running=member.is_running, did=member.did)


if __name__ == "__main__":
    main()
