"""An access token, as a machine gets one: by its secret, from the identity provider, through the edge."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from freehold import playbooks

ANSWER_SECONDS = 20


class TokenError(Exception):
    """The identity provider gave no token; the message says why."""


def access_token(inventory: str) -> str:
    """Return an access token of the client `smoke`, which may place orders; it is valid for some minutes.

    Raises:
        TokenError: the identity provider does not answer, or refuses.
    """
    names = ("topology_issuer", "topology_state_dir", "keycloak_smoke_secret")
    found = next(iter(playbooks.variables(inventory, "identity", *names).values()))
    authority = Path(found["topology_state_dir"], "pki", "ca.crt")
    return request(found["topology_issuer"], authority, "smoke", found["keycloak_smoke_secret"])


def request(issuer: str, authority: Path, client: str, secret: str) -> str:
    """Return an access token of a client that is a machine.

    Raises:
        TokenError: the identity provider does not answer, or refuses.
    """
    form = {"grant_type": "client_credentials", "client_id": client, "client_secret": secret}
    address = f"{issuer}/protocol/openid-connect/token"
    context = ssl.create_default_context(cafile=str(authority))
    try:
        with urllib.request.urlopen(  # noqa: S310  (https, by the inventory)
            address, urllib.parse.urlencode(form).encode(), timeout=ANSWER_SECONDS, context=context
        ) as answer:
            return str(json.load(answer)["access_token"])
    except urllib.error.HTTPError as error:
        raise TokenError(f"{address}: {error.code} {error.read().decode(errors='replace')[:200]}") from error
    except OSError as error:
        raise TokenError(f"{address}: {error}. `make logs SERVICE=keycloak` may say why.") from error
