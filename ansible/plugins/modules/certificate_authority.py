#!/usr/bin/python
"""Keep a certificate authority in a folder of the controller."""

from __future__ import annotations

import datetime
import os

from ansible.module_utils.basic import AnsibleModule
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DOCUMENTATION = r"""
module: certificate_authority
short_description: Certificate authority in a folder of the controller
description:
  - Makes ca.key (mode 0600) and ca.crt where neither exists. An authority that exists is never replaced, and one half without
    the other is refused.
options:
  directory:
    description: Folder of ca.key and ca.crt; made with mode 0700.
    type: path
    required: true
  common_name:
    description: Common name of a newly made authority.
    type: str
    required: true
  days:
    description: How long a newly made authority is valid.
    type: int
    required: true
"""


def make(common_name: str, days: int) -> tuple[bytes, bytes]:
    """Return key and certificate, both PEM, of a new self-signed P-256 authority that signs leaf certificates only."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Freehold"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=False,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=True,
                crl_sign=True,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return pem, certificate.public_bytes(serialization.Encoding.PEM)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "common_name": {"type": "str", "required": True},
            "days": {"type": "int", "required": True},
        },
        supports_check_mode=True,
    )
    directory = module.params["directory"]
    paths = [os.path.join(directory, name) for name in ("ca.key", "ca.crt")]
    present = [os.path.exists(path) for path in paths]
    if all(present):
        module.exit_json(changed=False)
    if any(present):
        missing = paths[present.index(False)]
        module.fail_json(
            msg=f"{missing} is missing though the other half is there: restore it from its backup (docs/security.md). To start "
            f"afresh, which makes every certificate new, move {directory} away."
        )
    if not module.check_mode:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        halves = make(module.params["common_name"], module.params["days"])
        for path, data, mode in zip(paths, halves, (0o600, 0o644), strict=True):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
    module.exit_json(changed=True)


if __name__ == "__main__":
    main()
