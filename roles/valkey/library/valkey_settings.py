#!/usr/bin/python
"""Bring running Valkey instances to the settings, users and certificate that their files have."""

from __future__ import annotations

import socket
import ssl
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.valkey_spread import Connection, Login, ValkeyError

DOCUMENTATION = r"""
module: valkey_settings
short_description: Apply changed settings, users and certificates to running Valkey instances
options:
  instances:
    description: Instances of this host, each with C(unit), C(address), C(port) and C(settings).
    type: list
    elements: dict
    required: true
  user:
    description: User that may do everything.
    type: str
    required: true
  password:
    description: Its password.
    type: str
    required: true
  ca_file:
    description: Certificate of the CA that signed the instances' certificates.
    type: path
    required: true
"""

EXAMPLES = r"""
- name: Apply the settings of Valkey
  valkey_settings:
    instances: "{{ __valkey_runtime }}"
    user: admin
    password: "{{ valkey_admin_password }}"
    ca_file: "{{ topology_ca_file }}"
"""

RETURN = r"""
applied:
  description: Names of what was changed, by instance.
  returned: always
  type: dict
restart:
  description: Units with a changed setting that only a restart applies.
  returned: always
  type: list
"""


def _presented(address: str, port: int, ca_file: str) -> bytes:
    """Return the certificate that an instance presents, in DER."""
    context = ssl.create_default_context(cafile=ca_file)
    with (
        socket.create_connection((address, port), 3) as plain,
        context.wrap_socket(plain, server_hostname=address) as tls,
    ):
        return tls.getpeercert(binary_form=True) or b""


def _apply(instance: dict[str, Any], login: Login, *, check: bool) -> tuple[list[str], bool]:
    """Return the names of what was, or would be, changed, and whether a restart is needed."""
    applied, restart = [], False
    settings = {name: str(value) for name, value in instance["settings"].items()}
    with Connection(instance["address"], instance["port"], login) as connection:
        if not check:
            before = connection.call("ACL", "LIST")
            connection.call("ACL", "LOAD")
            if connection.call("ACL", "LIST") != before:
                applied.append("users")
        for name, value in settings.items():
            answer = connection.call("CONFIG", "GET", name)
            present = answer[1] if isinstance(answer, list) and len(answer) > 1 else None
            if present == value:
                continue
            applied.append(name)
            if check:
                continue
            try:
                connection.call("CONFIG", "SET", name, value)
            except ValkeyError as error:
                if "immutable" not in str(error) and "protected" not in str(error):
                    raise
                restart = True
        certificate = settings["tls-cert-file"]
        with open(certificate, encoding="ascii") as file:
            wanted = ssl.PEM_cert_to_DER_cert(file.read())
        if _presented(connection.address, connection.port, login.ca_file) != wanted:
            applied.append("certificate")
            if not check:
                connection.call(
                    "CONFIG",
                    "SET",
                    "tls-cert-file",
                    certificate,
                    "tls-key-file",
                    settings["tls-key-file"],
                    "tls-ca-cert-file",
                    settings["tls-ca-cert-file"],
                )
    return applied, restart


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "instances": {"type": "list", "elements": "dict", "required": True, "no_log": True},
            "user": {"type": "str", "required": True},
            "password": {"type": "str", "required": True, "no_log": True},
            "ca_file": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    login = Login(module.params["user"], module.params["password"], module.params["ca_file"])
    applied: dict[str, list[str]] = {}
    restart: list[str] = []
    for instance in module.params["instances"]:
        try:
            names, needs_restart = _apply(instance, login, check=module.check_mode)
        except (ValkeyError, OSError) as error:
            if module.check_mode:
                continue
            module.fail_json(msg=f"{instance['unit']}: {error}", applied=applied, restart=restart)
        if names:
            applied[instance["unit"]] = names
        if needs_restart:
            restart.append(instance["unit"])
    module.exit_json(changed=bool(applied), applied=applied, restart=restart)


if __name__ == "__main__":
    main()
