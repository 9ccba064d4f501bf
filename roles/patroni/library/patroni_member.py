#!/usr/bin/python
"""One member of a Patroni cluster: found, join, restart, and what all members share."""

from __future__ import annotations

import base64
import functools
import grp
import hashlib
import hmac
import http.client
import json
import os
import pwd
import secrets
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: patroni_member
short_description: Make this host a running member of the Patroni cluster
description:
  - C(present) starts or reloads Patroni and waits until its PostgreSQL runs. A cluster is founded by the one host that
    C(may_found), and only after Patroni on every other host has answered that it has no data either. All others copy the
    primary by themselves. On the primary it then makes the shared configuration, the users and the databases what they
    should be.
  - C(restarted) hands the primary's part to another member if this one has it, restarts Patroni with its PostgreSQL, and
    waits until it streams again.
options:
  state: {type: str, choices: [present, restarted], required: true}
  connection:
    description: How to reach the cluster.
    type: dict
    required: true
    suboptions:
      name: {description: Name of this member., type: str, required: true}
      members: {description: Addresses of all members by name., type: dict, required: true}
      followers:
        description: >-
          Members among them that never become the primary. A cluster is not founded unless each says that it has no data; else nobody waits
          for them.
        type: list
        elements: str
        default: []
      port: {type: int, required: true}
      ca_file: {type: path, required: true}
      certificate: {type: path, required: true}
      key: {type: path, required: true}
      config_dir: {type: path, required: true}
      data_dir: {type: path, required: true}
      timeout: {description: Seconds for everything., type: int, required: true}
  reload: {description: Whether files changed that a running Patroni must read., type: bool, default: false}
  unit_changed: {description: Whether the unit changed., type: bool, default: false}
  may_found: {description: Whether this is the host that founds the cluster., type: bool, default: false}
  initdb: {description: Options of initdb, as in Patroni's own configuration., type: list, elements: raw}
  dynamic: {description: Patroni's dynamic configuration. What is not in it is removed., type: dict}
  users: {description: "Roles that log in: C(name), C(password).", type: list, elements: dict}
  databases: {description: "Databases: C(name), C(owner), C(users).", type: list, elements: dict}
  pooler: {description: The pooler's role, type: str}
  monitor: {description: The role that may read all figures and no data, type: str}
"""

RETURN = r"""
did: {description: What was changed, as words., type: list, returned: always}
roll: {description: Whether the running member needs a restart., type: bool, returned: always}
primary: {description: Whether this member is the primary., type: bool, returned: always}
"""

SOCKET = "/var/run/postgresql"
# Keys of the dynamic configuration that operators set by patronictl.
OPERATORS_KEYS = ("pause",)
POOLER_LOOKUP = """
  SELECT rolname::text, rolpassword FROM pg_catalog.pg_authid
  WHERE rolname = wanted AND rolcanlogin AND NOT rolsuper AND NOT rolreplication
    AND (rolvaliduntil IS NULL OR rolvaliduntil > pg_catalog.now())
"""
ACL = """
  SELECT coalesce(pg_get_userbyid(nullif(grantee, 0)), 'public'), privilege_type
  FROM pg_database, aclexplode(coalesce(datacl, acldefault('d', datdba))) WHERE datname = %s
"""
DEFAULT_ACL = """
  SELECT defaclobjtype::text, pg_get_userbyid(grantee), privilege_type
  FROM pg_default_acl, aclexplode(defaclacl) WHERE defaclrole = %s::regrole AND defaclnamespace = 0
"""
# What users get on what the owner makes: kind in the catalogue, words of the grant, privileges.
GRANTS = (
    ("r", "TABLES", ("DELETE", "INSERT", "SELECT", "UPDATE")),
    ("S", "SEQUENCES", ("SELECT", "USAGE")),
    ("n", "SCHEMAS", ("USAGE",)),
)


class ApiError(Exception):
    """What Patroni answered instead of a result."""


def scram_verifier(password: str, salt: bytes, iterations: int) -> str:
    """Return what PostgreSQL stores for a password, so that the password itself never reaches a statement or a log."""
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    parts = [base64.b64encode(part).decode() for part in (salt, hashlib.sha256(client_key).digest(), server_key)]
    return f"SCRAM-SHA-256${iterations}:{parts[0]}${parts[1]}:{parts[2]}"


def is_verifier_of(stored: str | None, password: str) -> bool:
    """Return whether a stored verifier belongs to a password."""
    if not stored or not stored.startswith("SCRAM-SHA-256$"):
        return False
    iterations, salt = stored.split("$")[1].split(":")
    return hmac.compare_digest(stored, scram_verifier(password, base64.b64decode(salt), int(iterations)))


def differences(now: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """Return the patch that makes one configuration the other: null removes a key."""
    patch: dict[str, Any] = {}
    for key in now.keys() - wanted.keys():
        if key not in OPERATORS_KEYS:
            patch[key] = None
    for key, value in wanted.items():
        old = now.get(key)
        if isinstance(value, dict):
            inner = differences(old if isinstance(old, dict) else {}, value)
            if inner:
                patch[key] = inner
        elif str(old).lower() != str(value).lower():
            patch[key] = value
    return patch


class Rest:
    """Patroni's REST API on all members, with this member's certificate."""

    def __init__(self, connection: dict[str, Any]) -> None:
        self._members: dict[str, str] = connection["members"]
        self._port: int = connection["port"]
        self._tls = ssl.create_default_context(cafile=connection["ca_file"])
        self._tls.load_cert_chain(connection["certificate"], connection["key"])

    def ask(self, member: str, path: str, method: str = "GET", body: Any = None, timeout: float = 5) -> tuple[int, str]:  # noqa: ANN401
        """Return status and text of the answer; raise OSError where nobody answers."""
        address = self._members[member]
        with closing(http.client.HTTPSConnection(address, self._port, timeout=timeout, context=self._tls)) as line:
            line.request(method, path, None if body is None else json.dumps(body))
            answer = line.getresponse()
            return answer.status, answer.read().decode(errors="replace")

    def status(self, member: str) -> dict[str, Any]:
        """Return what a member says of itself; empty where nobody answers."""
        try:
            result: dict[str, Any] = json.loads(self.ask(member, "/patroni")[1])
        except (OSError, http.client.HTTPException, ValueError):
            return {}
        return result


class Member:
    """The member on this host, and the cluster as it sees it."""

    def __init__(self, module: AnsibleModule) -> None:
        self._module = module
        self._params: dict[str, Any] = module.params
        self._connection: dict[str, Any] = module.params["connection"]
        self._name: str = self._connection["name"]
        self._others = [name for name in sorted(self._connection["members"]) if name != self._name]
        self._awaited = {name for name in self._others if name not in self._connection["followers"]}
        self._deadline = time.monotonic() + self._connection["timeout"]
        self._bootstrap_file = os.path.join(self._connection["config_dir"], "bootstrap.yml")
        self.did: list[str] = []
        self.is_running = self._systemctl("is-active", "--quiet") == 0
        self.roll = False
        self.is_primary = False

    @functools.cached_property
    def _rest(self) -> Rest:
        return Rest(self._connection)

    def _systemctl(self, *words: str) -> int:
        code: int = self._module.run_command(["systemctl", *words, "patroni.service"])[0]
        return code

    def _must(self, *words: str) -> None:
        self._module.run_command(["systemctl", *words, "patroni.service"], check_rc=True)

    def _wait(self, what: str, holds: Callable[[], bool]) -> None:
        while not holds():
            if time.monotonic() > self._deadline:
                log = self._module.run_command(["journalctl", "-u", "patroni", "-n", "5", "-o", "cat", "--no-pager"])[1]
                states = {name: self._rest.status(name) for name in sorted(self._connection["members"])}
                seen = ", ".join(
                    f"{name} is {s.get('role', 'silent')} ({s.get('state', '-')})" for name, s in states.items()
                )
                self._module.fail_json(
                    msg=f"patroni: after {self._connection['timeout']} s {what}. {seen}. Patroni's last words: {log.strip()}",
                    did=self.did,
                )
            time.sleep(0.5)

    def present(self) -> None:
        """Be a running member of a cluster that is what it should be."""
        has_data = os.path.exists(os.path.join(self._connection["data_dir"], "PG_VERSION"))
        if self._systemctl("is-enabled", "--quiet") != 0:
            self._do("enabled", "enable")
        if not self.is_running:
            self._do("started", "start")
        elif self._params["reload"]:
            self._do("reloaded", "reload")
        if self._module.check_mode and not self.is_running:
            return
        if not self._module.check_mode:
            self._wait("Patroni does not answer", lambda: bool(self._rest.status(self._name)))
            self._wait(f"PostgreSQL on {self._name} does not run", lambda: self._has_joined(has_data=has_data))
            if os.path.exists(self._bootstrap_file):
                os.unlink(self._bootstrap_file)
                self._must("reload")
        self.is_primary = self._rest.status(self._name).get("role") == "primary"
        self._configure()
        if self.is_primary:
            Databases(self._module, self.did).ensure()
        self.roll = self.is_running and (
            self._params["unit_changed"] or bool(self._rest.status(self._name).get("pending_restart"))
        )
        if self.roll:
            self.did.append("needs a restart")

    def _do(self, word: str, command: str) -> None:
        self.did.append(word)
        if not self._module.check_mode:
            self._must(command)

    def _has_joined(self, *, has_data: bool) -> bool:
        """Return whether PostgreSQL runs here as primary or streaming replica; found the cluster if that is due."""
        status = self._rest.status(self._name)
        if status.get("state") == "running":
            if status.get("role") == "primary":
                # A founder needs its bootstrap file until it has written the configuration that all share.
                return self._rest.ask(self._name, "/config")[0] == 200
            return bool(status.get("replication_state") == "streaming")
        if self._params["may_found"] and not has_data and not os.path.exists(self._bootstrap_file):
            self._found()
        return False

    def _found(self) -> None:
        """Let this host make a new database, if nobody has one: a member with data would have said so."""
        roles = [self._rest.status(name).get("role") for name in self._others]
        if any(role != "uninitialized" for role in roles):
            return
        dcs = self._params["dynamic"]
        with open(
            os.open(self._bootstrap_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640), "w", encoding="ascii"
        ) as file:
            json.dump({"bootstrap": {"dcs": dcs, "initdb": self._params["initdb"]}}, file)
        os.chown(self._bootstrap_file, 0, grp.getgrnam("postgres").gr_gid)
        self.did.append("founded the cluster")
        self._must("restart")

    def _configure(self) -> None:
        """Make the dynamic configuration what it should be; the primary's host does it, the others wait for it."""

        def patch() -> dict[str, Any]:
            status, text = self._rest.ask(self._name, "/config")
            return differences(json.loads(text) if status == 200 else {}, self._params["dynamic"])

        due = patch()
        if not due:
            return
        words = ", ".join(sorted({*due.get("postgresql", {}).get("parameters", {}), *(due.keys() - {"postgresql"})}))
        if self.is_primary:
            self.did.append(f"changed the configuration: {words or 'postgresql'}")
        if self._module.check_mode:
            return
        if self.is_primary:
            # The others look at the same moment; they shall see that there is something to wait for.
            time.sleep(3)
            status, text = self._rest.ask(self._name, "/config", "PATCH", due)
            if status != 200:
                raise ApiError(f"PATCH /config: {status} {text}")
        self._wait(f"the primary's host has not changed {words} (it must be part of this run)", lambda: not patch())
        # Patroni compares with the running server right after it has read the configuration.
        time.sleep(3)

    def restarted(self) -> None:
        """Restart as a replica, after a switchover where this is the primary."""
        self.did.append("restarted")
        if self._module.check_mode:
            return
        self._wait("another member is missing, so this one is not restarted", self._others_are_well)
        if self._rest.status(self._name).get("role") == "primary" and self._awaited:
            self._switch_over()
        self._must("restart")
        self._wait(
            f"PostgreSQL on {self._name} does not run again",
            lambda: self._has_joined(has_data=True) and not self._rest.status(self._name).get("pending_restart"),
        )
        self._wait("the cluster has no primary and synchronous replica", self._others_are_well)

    def _members(self) -> list[dict[str, Any]]:
        members: list[dict[str, Any]] = json.loads(self._rest.ask(self._name, "/cluster")[1])["members"]
        return members

    def _others_are_well(self) -> bool:
        """Return whether those that others wait for run and, with this one or among them, there is a primary."""
        members = self._members()
        well = {m["name"] for m in members if m["state"] in {"running", "streaming"}}
        return self._awaited <= well and any(m["role"] == "leader" for m in members)

    def _switch_over(self) -> None:
        """Make the replica the primary that is closest and, if there is one, needs no restart itself."""
        replicas = [m for m in self._members() if m["role"] in {"quorum_standby", "sync_standby"} and not m.get("lag")]
        self._wait("no synchronous replica has caught up", lambda: bool(replicas))
        candidate = min(replicas, key=lambda m: (bool(m.get("pending_restart")), m["name"]))["name"]
        body = {"leader": self._name, "candidate": candidate}
        status, text = self._rest.ask(self._name, "/switchover", "POST", body, timeout=60)
        if status not in {200, 202}:
            raise ApiError(f"switchover to {candidate}: {status} {text}")
        self.did.insert(0, f"made {candidate} the primary")
        self._wait(f"{candidate} is not the primary", lambda: self._rest.status(candidate).get("role") == "primary")


class Databases:
    """Users and databases on the primary, over the socket as postgres."""

    def __init__(self, module: AnsibleModule, did: list[str]) -> None:
        self._module = module
        self._did = did

    @contextmanager
    def _session(self, database: str) -> Iterator[Any]:
        """Yield a cursor. The server knows the caller by the effective user, which is postgres for as long."""
        import psycopg2  # noqa: PLC0415  (comes with Patroni, which check mode may not have yet)

        before = os.geteuid()
        os.seteuid(pwd.getpwnam("postgres").pw_uid)
        try:
            with closing(
                psycopg2.connect(host=SOCKET, dbname=database, user="postgres", connect_timeout=10)
            ) as session:
                session.autocommit = True
                with session.cursor() as cursor:
                    yield cursor
        finally:
            os.seteuid(before)

    def _change(self, cursor: Any, word: str, *statements: str) -> None:  # noqa: ANN401
        self._did.append(word)
        if not self._module.check_mode:
            for statement in statements:
                cursor.execute(statement)

    def ensure(self) -> None:
        """Make users, the pooler's way in, and databases what they should be."""
        pooler, monitor = self._module.params["pooler"], self._module.params["monitor"]
        with self._session("postgres") as cursor:
            cursor.execute("SELECT rolname, rolpassword FROM pg_authid WHERE rolcanlogin")
            known = dict(cursor.fetchall())
            for user in self._module.params["users"]:
                self._user(cursor, user["name"], user["password"], known)
            if pooler not in known:
                self._change(cursor, f"made the role {pooler}", f'CREATE ROLE "{pooler}" LOGIN')
            self._pooler(cursor, pooler)
            if monitor not in known:
                self._change(
                    cursor,
                    f"made the role {monitor}",
                    f'CREATE ROLE "{monitor}" LOGIN',
                    f'GRANT pg_monitor TO "{monitor}"',
                )
            self._access(cursor, "postgres", [pooler, "rewind", monitor])
            cursor.execute("SELECT datname, pg_get_userbyid(datdba) FROM pg_database")
            owners = dict(cursor.fetchall())
            for database in self._module.params["databases"]:
                name, owner = database["name"], database["owner"]
                if name not in owners:
                    self._change(cursor, f"made the database {name}", f'CREATE DATABASE "{name}" OWNER "{owner}"')
                elif owners[name] != owner:
                    self._change(cursor, f"gave {name} its owner", f'ALTER DATABASE "{name}" OWNER TO "{owner}"')
                self._access(cursor, name, [*database["users"], monitor])
        for database in self._module.params["databases"]:
            if database["name"] in owners or not self._module.check_mode:
                with self._session(database["name"]) as cursor:
                    self._grants(cursor, database)
                    self._statements(cursor, database["name"])

    def _user(self, cursor: Any, name: str, password: str, known: dict[str, str | None]) -> None:  # noqa: ANN401
        if is_verifier_of(known.get(name), password):
            return
        verifier = scram_verifier(password, secrets.token_bytes(16), 4096)
        verb = "ALTER" if name in known else "CREATE"
        word = f"set the password of {name}" if name in known else f"made the role {name}"
        self._change(cursor, word, f"{verb} ROLE \"{name}\" LOGIN PASSWORD '{verifier}'")

    def _pooler(self, cursor: Any, pooler: str) -> None:  # noqa: ANN401
        cursor.execute("SELECT prosrc FROM pg_proc WHERE oid = to_regproc('pooler.lookup')")
        if cursor.fetchone() == (POOLER_LOOKUP,):
            return
        self._change(
            cursor,
            "let the pooler look up passwords",
            "CREATE SCHEMA IF NOT EXISTS pooler",
            "CREATE OR REPLACE FUNCTION pooler.lookup(wanted text, OUT username text, OUT secret text) RETURNS SETOF record "
            f"LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $pooler${POOLER_LOOKUP}$pooler$",
            "REVOKE ALL ON FUNCTION pooler.lookup(text) FROM PUBLIC",
            f'GRANT USAGE ON SCHEMA pooler TO "{pooler}"',
            f'GRANT EXECUTE ON FUNCTION pooler.lookup(text) TO "{pooler}"',
        )

    def _access(self, cursor: Any, database: str, users: list[str]) -> None:  # noqa: ANN401
        """Let only these users connect, besides the owner."""
        cursor.execute(ACL, (database,))
        held = set(cursor.fetchall())
        if not held or any(grantee == "public" for grantee, _ in held):
            self._change(cursor, f"closed {database} to everybody", f'REVOKE ALL ON DATABASE "{database}" FROM PUBLIC')
        for user in users:
            if (user, "CONNECT") not in held:
                self._change(
                    cursor, f"let {user} use {database}", f'GRANT CONNECT ON DATABASE "{database}" TO "{user}"'
                )

    def _statements(self, cursor: Any, database: str) -> None:  # noqa: ANN401
        cursor.execute("SELECT 1 FROM pg_extension WHERE extname = 'pg_stat_statements'")
        if cursor.fetchone() is None:
            self._change(cursor, f"showed {database} its statements", "CREATE EXTENSION pg_stat_statements")

    def _grants(self, cursor: Any, database: dict[str, Any]) -> None:  # noqa: ANN401
        owner = database["owner"]
        cursor.execute(DEFAULT_ACL, (f'"{owner}"',))
        held = set(cursor.fetchall())
        for user in database["users"]:
            for kind, objects, privileges in GRANTS:
                if not {(kind, user, privilege) for privilege in privileges} <= held:
                    self._change(
                        cursor,
                        f"let {user} use the {objects.lower()} of {owner} in {database['name']}",
                        f'ALTER DEFAULT PRIVILEGES FOR ROLE "{owner}" GRANT {", ".join(privileges)} ON {objects} TO "{user}"',
                    )


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "restarted"], "required": True},
            "connection": {
                "type": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "members": {"type": "dict", "required": True},
                    "followers": {"type": "list", "elements": "str", "default": []},
                    "port": {"type": "int", "required": True},
                    "ca_file": {"type": "path", "required": True},
                    "certificate": {"type": "path", "required": True},
                    "key": {"type": "path", "required": True, "no_log": False},
                    "config_dir": {"type": "path", "required": True},
                    "data_dir": {"type": "path", "required": True},
                    "timeout": {"type": "int", "required": True},
                },
            },
            "reload": {"type": "bool", "default": False},
            "unit_changed": {"type": "bool", "default": False},
            "may_found": {"type": "bool", "default": False},
            "initdb": {"type": "list", "elements": "raw"},
            "dynamic": {"type": "dict"},
            "users": {
                "type": "list",
                "elements": "dict",
                "options": {
                    "name": {"type": "str", "required": True},
                    "password": {"type": "str", "required": True, "no_log": True},
                },
            },
            "databases": {
                "type": "list",
                "elements": "dict",
                "options": {
                    "name": {"type": "str", "required": True},
                    "owner": {"type": "str", "required": True},
                    "users": {"type": "list", "elements": "str", "default": []},
                },
            },
            "pooler": {"type": "str"},
            "monitor": {"type": "str"},
        },
        supports_check_mode=True,
    )
    member = Member(module)
    try:
        if module.params["state"] == "present":
            member.present()
        else:
            member.restarted()
    except (ApiError, OSError, http.client.HTTPException) as error:
        module.fail_json(msg=f"patroni: {error}", did=member.did)
    module.exit_json(changed=bool(member.did), did=member.did, roll=member.roll, primary=member.is_primary)


if __name__ == "__main__":
    main()
