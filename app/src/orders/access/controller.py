"""HTTP interface of log-ins with a browser: it parses, asks, and answers; it decides nothing else."""

import hashlib
import secrets
from base64 import urlsafe_b64encode
from hmac import compare_digest
from typing import Annotated, Any
from urllib.parse import quote, unquote

import msgspec
from litestar import Controller, Request, Response, get, post
from litestar.datastructures import Cookie
from litestar.di import NamedDependency
from litestar.params import QueryParameter

from orders import metrics
from orders.access.guards import BEARER, SESSION_COOKIE, cookie_of
from orders.access.provider import Challenge, GrantEndedError, Provider
from orders.access.schemas import ROLES, Access, Caller, Me
from orders.access.sessions import Sessions
from orders.errors import BadRequestError, UnauthorizedError, UnavailableError
from orders.problems import problems

_SUCCEEDED, _CANCELLED, _REFUSED = (metrics.LOGINS.labels(outcome) for outcome in ("succeeded", "cancelled", "refused"))

LOGIN_COOKIE = "__Host-login"
LOGIN_SECONDS = 600
# A path of ours, and nothing that a browser could take for another host: neither // nor a backslash.
NEXT_PATTERN = r"^/(?!/)[A-Za-z0-9._~!$&'()*+,;=:@%/?-]{0,511}$(?!\n)"
_STRANGE = "is not of a log-in that began in this browser within ten minutes; begin again at /login"
_NO_STORE = {"Cache-Control": "no-store"}
_NO_SESSIONS = "Nobody logs in with a browser here: the service has no store for sessions."
_UNKNOWN_CALLER = "There is neither a token nor a session, or it does not count."
_AWAY = "The identity provider's keys are not known yet, or the store of sessions does not answer."


class _Begun(msgspec.Struct, array_like=True):
    """A log-in that has begun. The browser keeps it: what anybody may begin costs the service no memory."""

    state: str
    nonce: str
    verifier: str
    next: str


_BEGUN = msgspec.json.Decoder(_Begun)


def _cookie(name: str, value: str = "", seconds: int | None = 0) -> Cookie:
    """Return a cookie that no other host can set and no script read; without seconds it goes with the browser."""
    return Cookie(key=name, value=value, path="/", max_age=seconds, secure=True, httponly=True, samesite="lax")


class BrowserController(Controller):
    """Log-ins with a browser: authorization code with PKCE, then a cookie."""

    tags = ["Access"]

    @get(
        "/login",
        access=Access.PUBLIC,
        operation_id="LogIn",
        status_code=302,
        responses=problems(s400="`next` is no path of this service.", s503=_NO_SESSIONS),
    )
    async def log_in(
        self,
        provider: NamedDependency[Provider | None],
        next: Annotated[  # the query's name, which errors are to have
            str, QueryParameter(pattern=NEXT_PATTERN, description="Where to go afterwards.")
        ] = "/",
    ) -> Response[None]:
        """Send a browser to the identity provider's log-in."""
        if provider is None:
            raise UnavailableError(_NO_SESSIONS)
        begun = _Begun(_random(), _random(), _random(), next)
        digest = urlsafe_b64encode(hashlib.sha256(begun.verifier.encode()).digest()).rstrip(b"=").decode()
        location = provider.log_in_at(Challenge(begun.state, begun.nonce, digest))
        kept = quote(msgspec.json.encode(begun), safe="")
        return Response(
            None,
            headers={"Location": location, **_NO_STORE},
            cookies=[_cookie(LOGIN_COOKIE, kept, LOGIN_SECONDS)],
        )

    @get(
        "/login/callback",
        access=Access.PUBLIC,
        operation_id="FinishLogIn",
        status_code=302,
        responses=problems(
            s400="The log-in did not begin in this browser, or is over.",
            s401="What the identity provider says does not count.",
            s503="The identity provider, or the store of sessions, does not answer.",
        ),
    )
    async def finish_log_in(
        self,
        request: Request[Any, Any, Any],
        provider: NamedDependency[Provider | None],
        sessions: NamedDependency[Sessions | None],
        given: Annotated[str, QueryParameter(name="state", max_length=512)] = "",
        code: Annotated[str, QueryParameter(max_length=2048)] = "",
    ) -> Response[None]:
        """Begin a session for a browser that comes from the identity provider."""
        if provider is None or sessions is None:
            raise UnavailableError(_NO_SESSIONS)
        begun = _begun(cookie_of(request.scope["headers"], LOGIN_COOKIE.encode()))
        if begun is None or not compare_digest(begun.state.encode(), given.encode()):
            _REFUSED.inc()
            raise BadRequestError("state", _STRANGE)
        headers = {"Location": begun.next, **_NO_STORE}
        if not code:
            _CANCELLED.inc()
            return Response(None, headers=headers, cookies=[_cookie(LOGIN_COOKIE)])
        former = cookie_of(request.scope["headers"], SESSION_COOKIE.encode())
        try:
            cookie = await sessions.begin(await provider.redeem(code, begun.verifier), begun.nonce, former)
        except GrantEndedError as error:
            _REFUSED.inc()
            raise BadRequestError("code", _STRANGE) from error
        except UnauthorizedError:
            _REFUSED.inc()
            raise
        _SUCCEEDED.inc()
        return Response(
            None, headers=headers, cookies=[_cookie(SESSION_COOKIE, cookie.decode(), None), _cookie(LOGIN_COOKIE)]
        )

    @post(
        "/logout",
        access=Access.SIGNED_IN,
        security=BEARER,
        operation_id="LogOut",
        status_code=204,
        responses=problems(s401=_UNKNOWN_CALLER, s403="The request is not from a page of ours.", s503=_AWAY),
    )
    async def log_out(
        self, caller: NamedDependency[Caller], sessions: NamedDependency[Sessions | None]
    ) -> Response[None]:
        """End the session of the cookie, which is over everywhere within a second. A token ends by itself."""
        if sessions is not None and caller.cookie:
            await sessions.end(caller.cookie)
        return Response(None, headers=_NO_STORE, cookies=[_cookie(SESSION_COOKIE)])

    @post(
        "/logout/everywhere",
        access=Access.SIGNED_IN,
        security=BEARER,
        operation_id="LogOutEverywhere",
        status_code=204,
        responses=problems(s401=_UNKNOWN_CALLER, s403="The request is not from a page of ours.", s503=_AWAY),
    )
    async def log_out_everywhere(
        self, caller: NamedDependency[Caller], sessions: NamedDependency[Sessions | None]
    ) -> Response[None]:
        """End all sessions of whoever asks, in every browser."""
        if sessions is not None:
            await sessions.end_all(caller.subject)
        return Response(None, headers=_NO_STORE, cookies=[_cookie(SESSION_COOKIE)])

    @get(
        "/v1/me",
        access=Access.SIGNED_IN,
        security=BEARER,
        operation_id="WhoAmI",
        responses=problems(s401=_UNKNOWN_CALLER, s503=_AWAY),
    )
    async def who_am_i(self, caller: NamedDependency[Caller]) -> Response[Me]:
        """Say who asks, and what they may do."""
        roles = [name for name, role in ROLES.items() if role in caller.roles]
        return Response(Me(caller.subject, roles, caller.name), headers=_NO_STORE)


def _random() -> str:
    return secrets.token_urlsafe(32)


def _begun(cookie: bytes) -> _Begun | None:
    try:
        return _BEGUN.decode(unquote(cookie.decode()))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
