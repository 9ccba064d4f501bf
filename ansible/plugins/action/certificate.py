"""Give a host a key and a certificate of the internal CA: the key is made there, the CA's key never leaves the controller."""

from __future__ import annotations

import datetime
import ipaddress
import os
from typing import Any

from ansible.errors import AnsibleActionFail
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """Ask the host whether its certificate still serves; where not, sign what it asks for."""

    _supports_check_mode = True
    _VALID_ARGS = frozenset({"name", "owner", "group", "mode", "names", "addresses", "common_name"})

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's result; `reason` says why a certificate was made."""
        task_vars = task_vars or {}
        result: dict[str, Any] = super().run(tmp, task_vars)
        host = task_vars["inventory_hostname"]
        value = self._templar.resolve_variable_expression
        domain, state_dir, address = (
            str(value("topology_domain")),
            str(value("topology_state_dir")),
            str(value("address")),
        )
        authority = os.path.join(state_dir, "pki")
        try:
            with open(os.path.join(authority, "ca.crt"), encoding="ascii") as file:
                ca_pem = file.read()
        except FileNotFoundError as error:
            if self._task.check_mode:
                # A check of hosts that have never converged: the authority would have been made before.
                result.update(changed=True, reason="there is none")
                return result
            raise AnsibleActionFail(
                f"{error.filename} does not exist: the role pki makes it, run ansible/site.yml"
            ) from error
        arguments = dict(self._task.args)
        names = dict.fromkeys([host, f"{host}.{domain}", "localhost", *(arguments.pop("names", None) or [])])
        addresses = dict.fromkeys([address, "127.0.0.1", *(arguments.pop("addresses", None) or [])])
        arguments.update(
            names=list(names),
            addresses=list(addresses),
            common_name=arguments.get("common_name") or host,
            directory=str(value("topology_pki_dir")),
            authority=ca_pem,
            renew_days=int(value("topology_certificate_renew_days")),
        )
        answer = self._execute_module("certificate", arguments, task_vars=task_vars)
        if not answer.get("failed") and answer.get("request"):
            signed = _sign(authority, answer["request"], days=int(value("topology_certificate_days")))
            reason = answer["reason"]
            answer = self._execute_module("certificate", arguments | {"certificate": signed}, task_vars=task_vars)
            answer["reason"] = reason
        result.update(answer)
        result.pop("invocation", None)
        return result


def _sign(authority: str, request: str, *, days: int) -> str:
    """Return the PEM certificate for a PEM request, valid from five minutes ago for `days` days.

    Names are those of the request: it comes over SSH from the module that was given them.
    """
    with open(os.path.join(authority, "ca.key"), "rb") as file:
        key = serialization.load_pem_private_key(file.read(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise AnsibleActionFail("ca.key is not an elliptic-curve key")
    with open(os.path.join(authority, "ca.crt"), "rb") as file:
        issuer = x509.load_pem_x509_certificate(file.read())
    csr = x509.load_pem_x509_csr(request.encode())
    if not csr.is_signature_valid:
        raise AnsibleActionFail("the certificate request's signature is not valid")
    now = datetime.datetime.now(datetime.UTC)
    names = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    for name in names.get_values_for_type(x509.IPAddress):
        ipaddress.ip_address(str(name))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(csr.subject)
        .issuer_name(issuer.subject)
        .public_key(csr.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=False,
                crl_sign=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(csr.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
                issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
            ),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    if not certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME):
        raise AnsibleActionFail("the certificate request has no common name")
    return certificate.public_bytes(serialization.Encoding.PEM).decode()
