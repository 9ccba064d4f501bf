#!/usr/bin/python
"""Keep a key and a certificate on a host; part of the action plugin of the same name, which signs."""

from __future__ import annotations

import contextlib
import datetime
import grp
import ipaddress
import os
import pwd
import stat
from typing import Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

try:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    HAVE_CRYPTOGRAPHY = True
except ImportError:
    HAVE_CRYPTOGRAPHY = False

DOCUMENTATION = r"""
module: certificate
short_description: Key and certificate of the internal CA for one service of a host
description:
  - Writes NAME.key, NAME.crt and NAME.pem (both, for HAProxy) into the folder of topology_pki_dir. The key is made on the host.
  - A certificate is renewed when fewer than topology_certificate_renew_days are left, or when its names, its subject or the CA
    changed. It serves servers and clients. Its subject is O=Freehold, OU=name, CN=common_name.
options:
  name:
    description: Name of the certificate, usually the service's.
    type: str
    required: true
  owner:
    description: Owner of the key.
    type: str
    default: root
  group:
    description: Group of the key.
    type: str
    default: root
  mode:
    description: Mode of the key and of NAME.pem.
    type: str
    default: "0640"
  names:
    description: DNS names beside the host's own and localhost.
    type: list
    elements: str
  addresses:
    description: IP addresses beside the host's own and 127.0.0.1.
    type: list
    elements: str
  common_name:
    description: Common name of the subject; the host's name where it is empty.
    type: str
"""


class Store:
    """The three files of one certificate."""

    def __init__(self, module: AnsibleModule) -> None:
        self._module = module
        self._parameters = module.params
        base = os.path.join(module.params["directory"], module.params["name"])
        self.key, self.crt, self.pem, self.new_key = f"{base}.key", f"{base}.crt", f"{base}.pem", f"{base}.key.new"

    def subject(self) -> x509.Name:
        """Return the subject that the certificate must have."""
        return x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Freehold"),
                x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, self._parameters["name"]),
                x509.NameAttribute(NameOID.COMMON_NAME, self._parameters["common_name"]),
            ]
        )

    def names(self) -> list[x509.GeneralName]:
        """Return the alternative names that the certificate must have."""
        dns = [x509.DNSName(name) for name in self._parameters["names"]]
        return [*dns, *(x509.IPAddress(ipaddress.ip_address(address)) for address in self._parameters["addresses"])]

    def stale(self) -> str:
        """Say why a new certificate is needed; empty when the present one serves."""
        try:
            with open(self.crt, "rb") as file:
                certificate = x509.load_pem_x509_certificate(file.read())
            with open(self.key, "rb") as file:
                key = serialization.load_pem_private_key(file.read(), password=None)
            os.stat(self.pem)
        except FileNotFoundError:
            return "there is none"
        except ValueError as error:
            return f"it cannot be read: {error}"
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        left = certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
        reasons = {
            "it is not of the present CA": not self._issued(certificate),
            "key and certificate do not match": certificate.public_key() != key.public_key(),
            "its subject changed": certificate.subject != self.subject(),
            "its names changed": set(names) != set(self.names()),
            f"it ends in {left.days} days": left < datetime.timedelta(days=self._parameters["renew_days"]),
        }
        return next((reason for reason, holds in reasons.items() if holds), "")

    def _issued(self, certificate: x509.Certificate) -> bool:
        try:
            certificate.verify_directly_issued_by(
                x509.load_pem_x509_certificate(self._parameters["authority"].encode())
            )
        except (InvalidSignature, ValueError, TypeError):
            return False
        return True

    def request(self) -> str:
        """Make a new key beside the present one and return a PEM request for it."""
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        os.makedirs(self._parameters["directory"], mode=0o755, exist_ok=True)
        self._write(self.new_key, pem, uid=0, gid=0, mode=0o600)
        builder = x509.CertificateSigningRequestBuilder().subject_name(self.subject())
        builder = builder.add_extension(x509.SubjectAlternativeName(self.names()), critical=False)
        return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()

    def install(self, certificate: str) -> None:
        """Put the signed certificate and its key in place."""
        with open(self.new_key, "rb") as file:
            key = file.read()
        uid, gid = self._ids()
        mode = int(self._parameters["mode"], 8)
        self._write(self.pem, certificate.encode() + key, uid=uid, gid=gid, mode=mode)
        self._write(self.key, key, uid=uid, gid=gid, mode=mode)
        self._write(self.crt, certificate.encode(), uid=0, gid=0, mode=0o644)
        os.unlink(self.new_key)

    def correct_access(self) -> bool:
        """Give the key its owner, group and mode; say whether they differed."""
        mode = int(self._parameters["mode"], 8)
        changed = False
        for path in (self.key, self.pem):
            now = os.stat(path)
            uid, gid = self._ids()
            if (now.st_uid, now.st_gid, stat.S_IMODE(now.st_mode)) != (uid, gid, mode):
                changed = True
                if not self._module.check_mode:
                    os.chown(path, uid, gid)
                    os.chmod(path, mode)
        return changed

    def _ids(self) -> tuple[int, int]:
        try:
            return pwd.getpwnam(self._parameters["owner"]).pw_uid, grp.getgrnam(self._parameters["group"]).gr_gid
        except KeyError as error:
            self._module.fail_json(msg=f"certificate {self._parameters['name']}: {error.args[0]}")
            raise

    @staticmethod
    def _write(path: str, data: bytes, *, uid: int, gid: int, mode: int) -> None:
        temporary = f"{path}.tmp"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chown(temporary, uid, gid)
        os.chmod(temporary, mode)
        os.replace(temporary, path)


def main() -> None:
    """Run the module: inspect and ask for a signature, or install what was signed."""
    specification: dict[str, Any] = {
        "name": {"type": "str", "required": True},
        "owner": {"type": "str", "default": "root"},
        "group": {"type": "str", "default": "root"},
        "mode": {"type": "str", "default": "0640"},
        "names": {"type": "list", "elements": "str", "required": True},
        "addresses": {"type": "list", "elements": "str", "required": True},
        "common_name": {"type": "str", "required": True},
        "directory": {"type": "path", "required": True},
        "authority": {"type": "str", "required": True},
        "renew_days": {"type": "int", "required": True},
        "certificate": {"type": "str"},
    }
    module = AnsibleModule(argument_spec=specification, supports_check_mode=True)
    if not HAVE_CRYPTOGRAPHY:
        if module.check_mode:
            module.exit_json(changed=True, reason="there is none")
        module.fail_json(msg=missing_required_lib("cryptography"))
    store = Store(module)
    if module.params["certificate"]:
        store.install(module.params["certificate"])
        module.exit_json(changed=True)
    reason = store.stale()
    if not reason:
        module.exit_json(changed=store.correct_access())
    if module.check_mode:
        module.exit_json(changed=True, reason=reason)
    module.exit_json(changed=True, reason=reason, request=store.request())


if __name__ == "__main__":
    main()
