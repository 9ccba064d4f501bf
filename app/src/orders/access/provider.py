"""The identity provider, as browsers' log-ins need it: where they go, and what it gives for what they bring back."""

import logging
from typing import NamedTuple
from urllib.parse import urlencode

import httpx
import msgspec

from orders.errors import UnavailableError
from orders.settings import CLIENT_SECRET, Browsers, Settings

_LOG = logging.getLogger(__name__)
ANSWER_SECONDS = 4.0


class GrantEndedError(Exception):
    """The identity provider has ended what was granted, or never granted it."""


class Challenge(NamedTuple):
    """What a log-in begins with and must come back with."""

    state: str
    nonce: str
    code_challenge: str


class Granted(msgspec.Struct, frozen=True):
    """What the identity provider grants."""

    access_token: str
    refresh_token: str
    id_token: str = ""


class _Refusal(msgspec.Struct):
    error: str


_GRANTED = msgspec.json.Decoder(Granted)
_REFUSAL = msgspec.json.Decoder(_Refusal)


class Provider:
    """Asks the identity provider. A request never waits for that, but those that log in and the log-in itself."""

    def __init__(self, settings: Settings, browsers: Browsers) -> None:
        self._settings = settings
        self._browsers = browsers
        self._redirect_uri = f"{browsers.url}/login/callback"
        self._client = httpx.AsyncClient(verify=settings.tls() or True, timeout=ANSWER_SECONDS, trust_env=False)

    async def stop(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def log_in_at(self, challenge: Challenge) -> str:
        """Return where a browser goes to log in."""
        parameters = {
            "response_type": "code",
            "client_id": self._browsers.client_id,
            "redirect_uri": self._redirect_uri,
            "scope": "openid",
            "state": challenge.state,
            "nonce": challenge.nonce,
            "code_challenge": challenge.code_challenge,
            "code_challenge_method": "S256",
        }
        return f"{self._browsers.issuer}/protocol/openid-connect/auth?{urlencode(parameters)}"

    async def redeem(self, code: str, verifier: str) -> Granted:
        """Return what a code is good for.

        Raises:
            GrantEndedError: it is good for nothing: made up, too old, or used before.
            UnavailableError: the identity provider does not answer.
        """
        return _GRANTED.decode(
            await self._post(
                self._browsers.token_url,
                grant_type="authorization_code",
                code=code,
                code_verifier=verifier,
                redirect_uri=self._redirect_uri,
            )
        )

    async def refresh(self, refresh_token: str) -> Granted:
        """Return what is granted now.

        Raises:
            GrantEndedError: nothing is.
            UnavailableError: the identity provider does not answer.
        """
        return _GRANTED.decode(
            await self._post(self._browsers.token_url, grant_type="refresh_token", refresh_token=refresh_token)
        )

    async def end(self, refresh_token: str) -> None:
        """End the log-in at the identity provider too, so that its page asks for a password again.

        Raises:
            GrantEndedError: it has ended already.
            UnavailableError: the identity provider does not answer.
        """
        await self._post(f"{self._browsers.token_url.rpartition('/')[0]}/logout", refresh_token=refresh_token)

    async def _post(self, url: str, **form: str) -> bytes:
        form |= {"client_id": self._browsers.client_id, "client_secret": self._settings.secret(CLIENT_SECRET)}
        try:
            answer = await self._client.post(url, data=form)
            if answer.is_success:
                return answer.content
            refusal = _REFUSAL.decode(answer.content).error
        except (httpx.HTTPError, msgspec.DecodeError) as error:
            raise UnavailableError("The identity provider does not answer.") from error
        if refusal == "invalid_grant":
            raise GrantEndedError
        # Ours to mend, such as a wrong secret: nobody is logged out for it.
        _LOG.warning("The identity provider refuses %s with %s: %s", url, answer.status_code, refusal[:64])
        raise UnavailableError("The identity provider does not take part.")
