#!/usr/bin/python
"""Push OCI archives of the controller to a registry that lacks them."""

from __future__ import annotations

import datetime
import http.client
import os
import shutil
import ssl
import subprocess
import tempfile
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

try:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    HAVE_CRYPTOGRAPHY = True
except ImportError:
    HAVE_CRYPTOGRAPHY = False

DOCUMENTATION = r"""
module: registry_images
short_description: Push OCI archives of the controller to a registry that lacks them
description:
  - Runs on the controller. An image whose digest the registry has is left alone; others are pushed as they are, with the
    same digest, and tagged with its first 12 digits so that a garbage collection keeps them.
  - The registry lets a client push whose certificate has the unit C(controller). The module makes itself one, valid for an
    hour, and leaves nothing behind.
options:
  registry: {description: Address and port of the registry., type: str, required: true}
  images: {description: "The archive of each image, by REPOSITORY@DIGEST.", type: dict, required: true}
  authority: {description: Folder with C(ca.crt) and C(ca.key)., type: path, required: true}
  timeout: {description: Seconds that the push of one image may take., type: int, default: 300}
"""

RETURN = r"""
pushed:
  description: Images that were pushed, as name@digest.
  returned: always
  type: list
"""

MANIFESTS = (
    "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, "
    "application/vnd.docker.distribution.manifest.v2+json"
)
PATIENCE_SECONDS = 20


def make_certificate(authority: str, folder: str) -> None:
    """Put ca.crt, client.cert and client.key, as skopeo wants them, into a folder."""
    shutil.copy(os.path.join(authority, "ca.crt"), os.path.join(folder, "ca.crt"))
    with open(os.path.join(authority, "ca.crt"), "rb") as file:
        issuer = x509.load_pem_x509_certificate(file.read())
    with open(os.path.join(authority, "ca.key"), "rb") as file:
        issuer_key = serialization.load_pem_private_key(file.read(), password=None)
    if not isinstance(issuer_key, ec.EllipticCurvePrivateKey):
        raise TypeError("ca.key is not an elliptic-curve key")
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Freehold"),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "controller"),
            x509.NameAttribute(NameOID.COMMON_NAME, "controller"),
        ]
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    with open(os.path.join(folder, "client.cert"), "wb") as file:
        file.write(certificate.public_bytes(serialization.Encoding.PEM))
    descriptor = os.open(os.path.join(folder, "client.key"), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )


def holds(registry: str, folder: str, name: str, digest: str) -> bool:
    """Return whether the registry has the image; raise OSError where it gives no answer that says so."""
    context = ssl.create_default_context(cafile=os.path.join(folder, "ca.crt"))
    context.load_cert_chain(os.path.join(folder, "client.cert"), os.path.join(folder, "client.key"))
    line = http.client.HTTPSConnection(registry, timeout=10, context=context)
    try:
        line.request("HEAD", f"/v2/{name}/manifests/{digest}", headers={"Accept": MANIFESTS})
        status = line.getresponse().status
    finally:
        line.close()
    if status not in {200, 404}:
        raise OSError(f"HTTP {status} for {name}@{digest}")
    return status == 200


def holds_soon(registry: str, folder: str, name: str, digest: str) -> bool:
    """Return whether the registry has the image, with patience for one that has just been started."""
    give_up = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return holds(registry, folder, name, digest)
        except (OSError, http.client.HTTPException):
            if time.monotonic() > give_up:
                raise
            time.sleep(0.5)


def push(module: AnsibleModule, folder: str, image: str, archive: str) -> None:
    """Copy the archive to the registry and ask for the digest that it then has."""
    registry = module.params["registry"]
    name, _, digest = image.partition("@")
    tag = digest.removeprefix("sha256:")[:12]
    skopeo = module.get_bin_path("skopeo", required=True)
    # The program's own default would be the user's policy file, which a controller need not have.
    command = [skopeo, "--insecure-policy", "copy", "--quiet", "--all", "--preserve-digests", "--dest-cert-dir", folder]
    command += [f"oci-archive:{archive}", f"docker://{registry}/{name}:{tag}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=module.params["timeout"], check=False)
    except subprocess.TimeoutExpired:
        module.fail_json(msg=f"{name} was not pushed to {registry} within {module.params['timeout']} s")
    if done.returncode != 0:
        module.fail_json(msg=f"{name} was not pushed to {registry}: {done.stderr.strip()}")
    if not holds(registry, folder, name, digest):
        module.fail_json(msg=f"{archive} is not {image}: the registry has another digest after the push")


def main() -> None:
    """Run the module."""
    specification: dict[str, Any] = {
        "registry": {"type": "str", "required": True},
        "images": {"type": "dict", "required": True},
        "authority": {"type": "path", "required": True},
        "timeout": {"type": "int", "default": 300},
    }
    module = AnsibleModule(argument_spec=specification, supports_check_mode=True)
    if not HAVE_CRYPTOGRAPHY:
        module.fail_json(msg=missing_required_lib("cryptography"))
    pushed = []
    if module.check_mode and not os.path.exists(os.path.join(module.params["authority"], "ca.key")):
        module.exit_json(changed=True, pushed=list(module.params["images"]))
    with tempfile.TemporaryDirectory() as folder:
        make_certificate(module.params["authority"], folder)
        for image, archive in module.params["images"].items():
            name, _, digest = image.partition("@")
            try:
                present = holds_soon(module.params["registry"], folder, name, digest)
            except (OSError, http.client.HTTPException) as error:
                if not module.check_mode:
                    module.fail_json(msg=f"the registry at {module.params['registry']} does not answer: {error}")
                present = False
            if not present:
                pushed.append(image)
                if not module.check_mode:
                    push(module, folder, image, archive)
    module.exit_json(changed=bool(pushed), pushed=pushed)


if __name__ == "__main__":
    main()
