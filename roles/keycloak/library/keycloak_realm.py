#!/usr/bin/python
"""Bring a realm of Keycloak, its roles, scopes and clients to what is wanted."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import open_url

DOCUMENTATION = r"""
module: keycloak_realm
short_description: Bring a realm of Keycloak to what is wanted
description:
  - Waits until Keycloak answers, compares what it has with what is wanted, and writes what differs. What is not named is left as
    it is; nothing is deleted but roles and scopes that a wanted client should not have.
  - A second run changes nothing; in check mode nothing is written.
options:
  url: {description: Keycloak's own address with its path., type: str, required: true}
  ready_url: {description: Where Keycloak says that it is ready., type: str, required: true}
  admin: {description: Client of the realm C(master) that may change things., type: str, required: true}
  secret: {description: Its secret., type: str, required: true}
  realm: {description: "The realm, as RealmRepresentation names things.", type: dict, required: true}
  roles: {description: "Roles of the realm, each with C(name) and C(description).", type: list, elements: dict, required: true}
  sign_up_roles: {description: Roles that a new user gets., type: list, elements: str, required: true}
  client_scopes: {description: Scopes as ClientScopeRepresentation names things., type: list, elements: dict, required: true}
  clients:
    description: Clients as ClientRepresentation names things, and in C(serviceAccountRoles) the roles that one has for itself.
    type: list
    elements: dict
    required: true
  client_secrets: {description: "Secret of each client, by its C(clientId).", type: dict, required: true}
  timeout: {description: How long to wait until Keycloak is ready, in seconds., type: int, default: 300}
"""

ANSWER_SECONDS = 30
_UNORDERED = {"defaultClientScopes", "optionalClientScopes", "redirectUris", "webOrigins"}

Json = dict[str, Any]


class KeycloakError(Exception):
    """Keycloak did not do what it was asked to; the message says what."""


def differs(wanted: Json, found: Json) -> bool:
    """Return whether what was found lacks something of what is wanted; what is not wanted by name does not count."""
    for name, value in wanted.items():
        other = found.get(name)
        if isinstance(value, dict) and isinstance(other, dict):
            if differs(value, other):
                return True
        elif name in _UNORDERED:
            if set(value) != set(other or []):
                return True
        elif value != other:
            return True
    return False


class Keycloak:
    """The administration of a Keycloak, by its REST interface."""

    def __init__(self, url: str, admin: str, secret: str) -> None:
        self._url = url
        form = {"grant_type": "client_credentials", "client_id": admin, "client_secret": secret}
        answer = self._send("POST", "/realms/master/protocol/openid-connect/token", urlencode(form).encode(), {})
        self._headers = {"Authorization": f"Bearer {answer['access_token']}", "Content-Type": "application/json"}

    def _send(self, method: str, path: str, data: bytes | None, headers: dict[str, str]) -> Any:  # noqa: ANN401
        # The edge says so of every user; here it keeps Keycloak from refusing what comes without TLS over the loopback.
        headers = {**headers, "X-Forwarded-Proto": "https"}
        try:
            with open_url(
                self._url + path, method=method, data=data, headers=headers, timeout=ANSWER_SECONDS, use_proxy=False
            ) as answer:
                body = answer.read()
        except HTTPError as error:
            text = error.read().decode(errors="replace")[:300]
            raise KeycloakError(f"{method} {path}: {error.code} {text}") from error
        return json.loads(body) if body else None

    def get(self, path: str) -> Any:  # noqa: ANN401
        """Return what is at a path, none where nothing is."""
        try:
            return self._send("GET", f"/admin/realms{path}", None, self._headers)
        except KeycloakError as error:
            if isinstance(error.__cause__, HTTPError) and error.__cause__.code == HTTPStatus.NOT_FOUND:
                return None
            raise

    def write(self, method: str, path: str, content: object) -> None:
        """Write something to a path."""
        self._send(method, f"/admin/realms{path}", json.dumps(content).encode(), self._headers)


class Realm:
    """A realm, step by step made what it should be."""

    def __init__(self, keycloak: Keycloak, name: str, *, dry: bool) -> None:
        self._keycloak = keycloak
        self._path = f"/{quote(name)}"
        self._dry = dry
        self.done: list[str] = []

    def _change(self, what: str, method: str, path: str, content: object) -> None:
        self.done.append(what)
        if not self._dry:
            self._keycloak.write(method, path, content)

    def _get(self, path: str) -> Any:  # noqa: ANN401
        return self._keycloak.get(self._path + path)

    def settings(self, wanted: Json) -> bool:
        """Make the realm; return whether it is there now."""
        found = self._get("")
        if found is None:
            self._change(f"made the realm {wanted['realm']}", "POST", "", wanted)
            return not self._dry
        if differs(wanted, found):
            self._change(f"changed the realm {wanted['realm']}", "PUT", self._path, wanted)
        return True

    def roles(self, wanted: list[Json], sign_up: list[str]) -> None:
        """Make the realm's roles, and those of a new user."""
        found = {role["name"]: role for role in self._get("/roles")}
        for role in wanted:
            name = role["name"]
            if name not in found:
                self._change(f"made the role {name}", "POST", f"{self._path}/roles", role)
            elif differs(role, found[name]):
                self._change(f"changed the role {name}", "PUT", f"{self._path}/roles/{quote(name)}", role)
        default = f"/roles/{quote('default-roles-' + self._path[1:])}/composites"
        ours = {role["name"] for role in wanted}
        has = {role["name"] for role in self._get(default) if role["name"] in ours}
        self._assign("a new user", default, has, set(sign_up))

    def _assign(self, whom: str, path: str, has: set[str], wanted: set[str]) -> None:
        for method, names, word in (("POST", wanted - has, "gave"), ("DELETE", has - wanted, "took from")):
            if names:
                roles = [self._get(f"/roles/{quote(name)}") for name in sorted(names)]
                self._change(
                    f"{word} {whom}: {', '.join(sorted(names))}", method, self._path + path, list(filter(None, roles))
                )

    def client_scopes(self, wanted: list[Json]) -> None:
        """Make the scopes and what they put into tokens."""
        found = {scope["name"]: scope for scope in self._get("/client-scopes")}
        for scope in wanted:
            name = scope["name"]
            known = found.get(name)
            if known is None:
                self._change(f"made the scope {name}", "POST", f"{self._path}/client-scopes", scope)
                continue
            mappers = scope["protocolMappers"]
            path = f"{self._path}/client-scopes/{known['id']}"
            if differs({key: value for key, value in scope.items() if key != "protocolMappers"}, known):
                self._change(f"changed the scope {name}", "PUT", path, {**known, **scope, "protocolMappers": None})
            there = {mapper["name"]: mapper for mapper in known.get("protocolMappers", [])}
            for mapper in mappers:
                other = there.get(mapper["name"])
                if other is None:
                    self._change(
                        f"made a mapper of the scope {name}", "POST", f"{path}/protocol-mappers/models", mapper
                    )
                elif differs(mapper, other):
                    at = f"{path}/protocol-mappers/models/{other['id']}"
                    self._change(f"changed a mapper of the scope {name}", "PUT", at, {**other, **mapper})

    def client(self, wanted: Json) -> None:
        """Make a client, with its secret, scopes and roles."""
        wanted = dict(wanted)
        roles = wanted.pop("serviceAccountRoles", None)
        name = wanted["clientId"]
        (known,) = self._get(f"/clients?clientId={quote(name)}") or (None,)
        if known is None:
            self._change(f"made the client {name}", "POST", f"{self._path}/clients", wanted)
            (known,) = self._get(f"/clients?clientId={quote(name)}") or (None,)
        elif differs(wanted, known):
            self._change(
                f"changed the client {name}", "PUT", f"{self._path}/clients/{known['id']}", {**known, **wanted}
            )
            self._scopes(name, known, wanted)
        if known and roles is not None:
            user = self._get(f"/clients/{known['id']}/service-account-user")["id"]
            path = f"/users/{user}/role-mappings/realm"
            has = {role["name"] for role in self._get(path)}
            self._assign(f"the client {name}", path, has, set(roles))

    def _scopes(self, name: str, known: Json, wanted: Json) -> None:
        # An update leaves a client's scopes as they are; each is a thing of its own.
        identifiers = {scope["name"]: scope["id"] for scope in self._get("/client-scopes")}
        for kind, key in (("default", "defaultClientScopes"), ("optional", "optionalClientScopes")):
            has, should = set(known.get(key, [])), set(wanted.get(key, []))
            for method, names in (("PUT", should - has), ("DELETE", has - should)):
                for scope in sorted(names):
                    path = f"{self._path}/clients/{known['id']}/{kind}-client-scopes/{identifiers[scope]}"
                    self._change(f"changed the scopes of the client {name}", method, path, {})


def wait_until_ready(url: str, seconds: int) -> None:
    """Return once Keycloak says that it is ready.

    Raises:
        KeycloakError: it did not in time.
    """
    until = time.monotonic() + seconds
    while True:
        try:
            open_url(url, timeout=5, use_proxy=False).close()
        except (URLError, OSError) as error:
            if time.monotonic() > until:
                raise KeycloakError(
                    f"Keycloak is not ready after {seconds} s ({error}). `make logs SERVICE=keycloak` says why; "
                    "keycloak_start_seconds gives it longer."
                ) from error
            time.sleep(0.5)
        else:
            return


def run(module: AnsibleModule, fail: Callable[..., None]) -> None:
    """Do the module's work."""
    asked = module.params
    try:
        wait_until_ready(asked["ready_url"], asked["timeout"])
        keycloak = Keycloak(asked["url"], asked["admin"], asked["secret"])
        realm = Realm(keycloak, asked["realm"]["realm"], dry=module.check_mode)
        if realm.settings(asked["realm"]):
            realm.roles(asked["roles"], asked["sign_up_roles"])
            realm.client_scopes(asked["client_scopes"])
            for client in asked["clients"]:
                realm.client({**client, "secret": asked["client_secrets"][client["clientId"]]})
    except (KeycloakError, URLError, OSError) as error:
        fail(msg=str(error))
    else:
        module.exit_json(changed=bool(realm.done), done=realm.done)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        {
            "url": {"type": "str", "required": True},
            "ready_url": {"type": "str", "required": True},
            "admin": {"type": "str", "required": True},
            "secret": {"type": "str", "required": True, "no_log": True},
            "realm": {"type": "dict", "required": True},
            "roles": {"type": "list", "elements": "dict", "required": True},
            "sign_up_roles": {"type": "list", "elements": "str", "required": True},
            "client_scopes": {"type": "list", "elements": "dict", "required": True},
            "clients": {"type": "list", "elements": "dict", "required": True},
            "client_secrets": {"type": "dict", "required": True, "no_log": True},
            "timeout": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    run(module, module.fail_json)


if __name__ == "__main__":
    main()
