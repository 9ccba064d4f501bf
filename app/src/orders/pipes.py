"""One connection to one Valkey node, by which any number of calls go at once and are answered in their order.

The client's own way, a connection a call, costs a request as much as all the rest of it, and a new connection ten milliseconds.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Sequence
from typing import Any, cast

import libvalkey

Command = tuple[str | bytes | int, ...]

# A node that has been silent for so long will hardly answer on this connection.
SILENCE_SECONDS = 1.0


class _Call:
    """Commands that wait for their answers."""

    __slots__ = ("answers", "asked_at", "future", "left", "until")

    def __init__(self, future: asyncio.Future[list[Any]], count: int, asked_at: float, until: float) -> None:
        self.future = future
        self.left = count
        self.asked_at = asked_at
        self.until = until
        self.answers: list[Any] = []


class Pipe(asyncio.Protocol):
    """The connection. What is asked in one turn of the event loop goes as one write."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = libvalkey.Reader()
        self._transport: asyncio.Transport | None = None
        self._calls: deque[_Call] = deque()
        self._unsent: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None

    @classmethod
    async def connect(
        cls, host: str, port: int, *, tls: ssl.SSLContext | None, user: str, password: str, seconds: float
    ) -> "Pipe":
        """Return a connection by which commands may be sent.

        Raises:
            OSError: the node is not there in time; TimeoutError is one.
            libvalkey.ReplyError: it does not let us in.
        """
        async with asyncio.timeout(seconds):
            _, pipe = await asyncio.get_running_loop().create_connection(
                cls, host, port, ssl=tls, server_hostname=host if tls else None
            )
            try:
                await pipe.ask([("AUTH", user, password)], seconds)
            except BaseException:
                pipe.close()
                raise
        return pipe

    @property
    def is_open(self) -> bool:
        """Whether it can be asked."""
        return self._transport is not None

    @property
    def calls(self) -> int:
        """How many calls wait for their answers, those too that nobody waits for any more."""
        return len(self._calls)

    def ask(self, commands: Sequence[Command], seconds: float) -> asyncio.Future[list[Any]]:
        """Return what will have the answers: OSError where there is none in time, ReplyError where one is an error."""
        future: asyncio.Future[list[Any]] = self._loop.create_future()
        if self._transport is None:
            future.set_exception(ConnectionResetError("the connection is lost"))
            return future
        now = self._loop.time()
        self._calls.append(_Call(future, len(commands), now, now + seconds))
        if not self._unsent:
            self._loop.call_soon(self._send)
        self._unsent += [libvalkey.pack_command(command) for command in commands]
        if self._timer is None:
            self._timer = self._loop.call_at(now + seconds, self._look)
        return future

    def close(self) -> None:
        """End it; whoever waits is told."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        calls, self._calls = self._calls, deque()
        for call in calls:
            if not call.future.done():
                call.future.set_exception(ConnectionResetError("the connection is lost"))

    def _send(self) -> None:
        unsent, self._unsent = self._unsent, []
        if self._transport is not None:
            self._transport.write(b"".join(unsent))

    def _look(self) -> None:
        """See to calls whose time is over. Their answers are still read: the connection stays as good as it is."""
        self._timer = None
        now = self._loop.time()
        if self._calls and now >= self._calls[0].asked_at + SILENCE_SECONDS:
            self.close()
            return
        next_look = 0.0
        for call in self._calls:
            if call.future.done():
                continue
            if now < call.until:
                next_look = call.until
                break
            call.future.set_exception(TimeoutError("no answer in time"))
        if self._calls:
            silent_at = self._calls[0].asked_at + SILENCE_SECONDS
            self._timer = self._loop.call_at(min(next_look or silent_at, silent_at), self._look)

    # What the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, _error: Exception | None) -> None:
        """End."""
        self.close()

    def data_received(self, data: bytes) -> None:
        """Hand out answers."""
        self._reader.feed(data)
        while self._calls and (answer := self._reader.gets()) is not False:
            call = self._calls[0]
            call.answers.append(answer)
            call.left -= 1
            if call.left:
                continue
            self._calls.popleft()
            if call.future.done():
                continue
            error = next((each for each in call.answers if isinstance(each, libvalkey.ReplyError)), None)
            if error is not None:
                call.future.set_exception(error)
            else:
                call.future.set_result(call.answers)
        if not self._calls and self._timer is not None:
            self._timer.cancel()
            self._timer = None
