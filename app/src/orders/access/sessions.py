"""Sessions of browsers: found by a cookie's identifier, of which the store knows the hash only.

A process knows a session again for a second, so a log-out counts everywhere within that. What the session may do is asked of the
identity provider anew every few minutes, apart from any request; while that is away, what it said last goes on.
"""

import asyncio
import hashlib
import logging
import math
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Coroutine, Iterable
from typing import Any, NamedTuple

import msgspec

from orders import metrics
from orders.access.provider import Granted, GrantEndedError, Provider
from orders.access.schemas import Caller, Session, granted
from orders.access.store import Store
from orders.access.tokens import Tokens
from orders.errors import SessionEndedError, UnauthorizedError, UnavailableError
from orders.settings import Browsers

_LOG = logging.getLogger(__name__)
_CACHED, _LOADED, _ENDED, _AWAY = (
    metrics.SESSIONS.labels(outcome) for outcome in ("cached", "loaded", "ended", "store_away")
)
_CHECKED, _CHECK_ENDED, _CHECK_FAILED = (
    metrics.SESSION_CHECKS.labels(outcome) for outcome in ("checked", "ended", "failed")
)
_LOGGED_OUT, _PROVIDER_ENDED, _PROVIDER_AWAY = (
    metrics.LOGOUTS.labels(outcome) for outcome in ("ended", "provider_ended", "provider_away")
)

KNOWN_SECONDS = 1.0
MOST_KNOWN = 4096
EXTENDED_BY = 0.1  # of the idle time must have passed before a session in use is written again
CHECK_AGAIN_SECONDS = 30  # after a check that failed, or that another replica makes
MOST_TASKS = 16
END_SECONDS = 1.0  # that an answer to a log-out waits for the identity provider
KEEP_ATTEMPTS = 5

_IDENTIFIER = re.compile(rb"[A-Za-z0-9_-]{43}")
_DECODER = msgspec.json.Decoder(Session)
_ENCODER = msgspec.json.Encoder()


class _Known(NamedTuple):
    caller: Caller
    until: float


class Sessions:
    """All sessions, of which this process knows those that it saw in the last second."""

    def __init__(self, browsers: Browsers, store: Store, provider: Provider, tokens: Tokens) -> None:
        self._browsers = browsers
        self._store = store
        self._provider = provider
        self._tokens = tokens
        self._again = min(CHECK_AGAIN_SECONDS, browsers.check_seconds)
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to connect to the store; return at once."""
        self._store.start()

    async def stop(self) -> None:
        """Finish what is under way, within a moment, and close the connections."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=1.0)
            for task in late:
                task.cancel()
        await self._provider.stop()
        await self._store.stop()

    async def find(self, cookie: bytes) -> Caller:
        """Return whose session a cookie's identifier is of.

        Raises:
            SessionEndedError: nobody's.
            UnavailableError: the store does not answer.
        """
        known = self._known.get(cookie)
        if known is not None and time.monotonic() < known.until:
            _CACHED.inc()
            return known.caller
        self._known.pop(cookie, None)
        try:
            session = await self._load(cookie)
        except UnavailableError:
            _AWAY.inc()
            raise
        if session is None:
            _ENDED.inc()
            raise SessionEndedError
        _LOADED.inc()
        caller = Caller(session.subject, granted(session.roles), session.name, cookie)
        while len(self._known) >= MOST_KNOWN:
            self._known.popitem(last=False)
        self._known[cookie] = _Known(caller, time.monotonic() + KNOWN_SECONDS)
        return caller

    async def _load(self, cookie: bytes) -> Session | None:
        if not _IDENTIFIER.fullmatch(cookie):
            return None
        key = _key(cookie)
        content, left = await self._store.read(_name(key), ("GET",), ("TTL",))
        session = _DECODER.decode(content) if content is not None else None
        now = time.time()
        if session is None or session.key != key or session.ends_at <= now:
            return None
        lifetime = self._lifetime(session, now)
        if left < lifetime - EXTENDED_BY * self._browsers.idle_seconds:
            self._begin(self._extend(key, lifetime))
        if session.checked_at + self._browsers.check_seconds <= now:
            self._begin(self._check(key))
        return session

    def _lifetime(self, session: Session, now: float) -> int:
        # Rounded up: the store forgets a session at its end or a moment after, which whoever loads it checks, never before.
        return max(1, min(self._browsers.idle_seconds, math.ceil(session.ends_at - now)))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something apart from the request, unless there is much to do: then a later request has it done."""
        if len(self._tasks) >= MOST_TASKS:
            work.close()
            return
        self._task(work)

    def _task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) and not isinstance(error, UnavailableError):
            _LOG.error("A session's upkeep failed", exc_info=error)

    async def _extend(self, key: str, lifetime: int) -> None:
        await self._store.write(_name(key), ("EXPIRE", lifetime))

    async def begin(self, granting: Granted, nonce: str, former: bytes) -> bytes:
        """Begin a session, always under a new identifier, and return that. The one that the browser had ends.

        Raises:
            UnauthorizedError: what the identity provider granted does not hold together.
            UnavailableError: the store does not answer.
        """
        caller, roles = await self._tokens.verify_granted(granting.access_token)
        name = await self._tokens.verify_login(granting.id_token, self._browsers.client_id, nonce, caller.subject)
        if former:
            # Not at the identity provider: there the browser's log-in may be the very one that this session begins with.
            await self.end(former, here_only=True)
        cookie = secrets.token_urlsafe(32).encode()
        key, now = _key(cookie), int(time.time())
        ends_at = now + self._browsers.session_seconds
        session = Session(key, caller.subject, roles, name, granting.refresh_token, ends_at, now)
        # First where "everywhere" looks, so that no session is ever out of its sight.
        await self._store.write(
            _list_name(caller.subject),
            ("ZREMRANGEBYSCORE", "-inf", now),
            ("ZADD", ends_at, key),
            ("EXPIRE", self._browsers.session_seconds),
        )
        await self._store.write(_name(key), ("SET", _ENCODER.encode(session), "EX", self._lifetime(session, now)))
        return cookie

    async def end(self, cookie: bytes, *, here_only: bool = False) -> None:
        """End a session, here at once, on other replicas within a second, and at the identity provider when that answers.

        Raises:
            UnavailableError: the store does not answer.
        """
        self._known.pop(cookie, None)
        if _IDENTIFIER.fullmatch(cookie) and (session := await self._remove(_key(cookie))):
            if not here_only:
                await self._end_at_provider([session])
            await self._store.write(_list_name(session.subject), ("ZREM", session.key))

    async def end_all(self, subject: str) -> None:
        """End all sessions of a subject.

        Raises:
            UnavailableError: the store does not answer for one of them; the others have ended.
        """
        for cookie in [cookie for cookie, known in self._known.items() if known.caller.subject == subject]:
            del self._known[cookie]
        (keys,) = await self._store.read(_list_name(subject), ("ZRANGE", 0, -1))
        removed = await asyncio.gather(*(self._remove(key.decode()) for key in keys), return_exceptions=True)
        await self._end_at_provider(outcome for outcome in removed if isinstance(outcome, Session))
        for outcome in removed:
            if isinstance(outcome, BaseException):
                raise outcome
        if keys:
            await self._store.write(_list_name(subject), ("ZREM", *keys))

    async def _remove(self, key: str) -> Session | None:
        (content,) = await self._store.write(_name(key), ("GETDEL",))
        if content is None:
            return None
        _LOGGED_OUT.inc()
        return _DECODER.decode(content)

    async def _end_at_provider(self, sessions: Iterable[Session]) -> None:
        """Return when the log-ins have ended, so that the next one wants a password; later than a second it is done apart."""
        if tasks := [self._task(self._end_log_in(session.refresh_token)) for session in sessions]:
            await asyncio.wait(tasks, timeout=END_SECONDS)

    async def _end_log_in(self, refresh_token: str) -> None:
        try:
            await self._provider.end(refresh_token)
        except UnavailableError:
            _PROVIDER_AWAY.inc()
        except GrantEndedError:
            _PROVIDER_ENDED.inc()
        else:
            _PROVIDER_ENDED.inc()

    async def _check(self, key: str) -> None:
        """Have the identity provider say anew what a session may do, and whether it goes on."""
        # A refresh token is good for one use: of all replicas one may use it, and none too soon after a failure.
        (claimed,) = await self._store.write(f"check:{key}", ("SET", b"", "NX", "EX", self._again))
        if claimed is None:
            return
        (content,) = await self._store.read(_name(key), ("GET",))
        session = _DECODER.decode(content) if content is not None else None
        if session is None or session.checked_at + self._browsers.check_seconds > time.time():
            return
        try:
            granting = await self._provider.refresh(session.refresh_token)
            caller, roles = await self._tokens.verify_granted(granting.access_token)
        except GrantEndedError:
            caller = None
        except (UnavailableError, UnauthorizedError):
            _CHECK_FAILED.inc()
            return
        if caller is None or caller.subject != session.subject:
            _CHECK_ENDED.inc()
            await self._store.write(_name(key), ("DEL",))
            return
        now = int(time.time())
        renewed = msgspec.structs.replace(session, roles=roles, refresh_token=granting.refresh_token, checked_at=now)
        await self._keep(key, _ENCODER.encode(renewed))
        _CHECKED.inc()

    async def _keep(self, key: str, content: bytes) -> None:
        """Write a session that is there; one that was ended meanwhile stays so."""
        for attempt in range(1, KEEP_ATTEMPTS + 1):
            try:
                await self._store.write(_name(key), ("SET", content, "XX", "KEEPTTL"))
            except UnavailableError:  # the refresh token that the store has is used up: it must get the new one
                if attempt == KEEP_ATTEMPTS:
                    raise
                await asyncio.sleep(1)
            else:
                return


def _key(cookie: bytes) -> str:
    return hashlib.sha256(cookie).hexdigest()


def _name(key: str) -> str:
    return f"session:{key}"


def _list_name(subject: str) -> str:
    return f"sessions-of:{subject}"
