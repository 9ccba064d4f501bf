"""A connection to RabbitMQ that comes back by itself, for those who publish and for those who consume."""

import asyncio
import logging
import random
import ssl
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pika
from pika.adapters.asyncio_connection import AsyncioConnection

from orders.settings import Address, Settings, SettingsError

_LOG = logging.getLogger(__name__)

# A broker that loses power sends nothing more. Unanswered writes and probes are given up after a second or two; one whose
# host lives, while it hangs, is given up by its heartbeat.
_HEARTBEAT_SECONDS = 4
_TCP = {"TCP_USER_TIMEOUT": 1000, "TCP_KEEPIDLE": 1, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 2}
_CONNECT_SECONDS = 1.0
_HANDSHAKE_SECONDS = 2.0
_BLOCKED_SECONDS = 2.0


def parameters(
    settings: Settings, node: Address, tls: ssl.SSLContext | None, name: str, *, heartbeat: int = _HEARTBEAT_SECONDS
) -> pika.ConnectionParameters:
    """Return how a node is reached, with the password of now.

    Raises:
        SettingsError: the secret cannot be read.
    """
    return pika.ConnectionParameters(
        node.host,
        node.port,
        settings.rabbitmq_vhost,
        pika.PlainCredentials(
            settings.rabbitmq_user, settings.secret("orders_rabbitmq_password"), erase_on_connect=True
        ),
        ssl_options=pika.SSLOptions(tls, server_hostname=node.host) if tls else None,
        heartbeat=heartbeat,
        socket_timeout=_CONNECT_SECONDS,
        stack_timeout=_HANDSHAKE_SECONDS,
        blocked_connection_timeout=_BLOCKED_SECONDS,
        connection_attempts=1,
        tcp_options=_TCP,
        client_properties={"connection_name": f"orders {name}"},
    )


class _Connection(AsyncioConnection):  # type: ignore[misc]  # it ships no types
    """pika's, which writes a message's three frames apart: over TLS that is three records, and three packets."""

    def _output_marshaled_frames(self, marshaled_frames: Sequence[bytes]) -> None:
        super()._output_marshaled_frames([b"".join(marshaled_frames)])


class Link:
    """One connection with one channel, to the first node that takes it; subclasses say what happens on it."""

    name = "link"

    def __init__(self, settings: Settings, nodes: Sequence[Address]) -> None:
        self._settings = settings
        self._nodes = nodes
        self._tls = settings.tls()
        self._next = 0
        self._connection: Any = None
        self._channel: Any = None
        self._stopping = False
        self._complaints: set[str] = set()
        self.ready = False

    def start(self) -> None:
        """Begin to connect; return at once."""
        self._stopping = False
        self._connect()

    async def stop(self, seconds: float = 1.0) -> None:
        """Close the connection: what was sent on it before has arrived then, what was not acknowledged goes back."""
        self._stopping = True
        self._lose("stopping")
        connection, self._connection = self._connection, None
        if connection is None or connection.is_closed:
            return
        closed = asyncio.Event()
        connection.add_on_close_callback(lambda *_: closed.set())
        if not connection.is_closing:
            connection.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await closed.wait()

    # What a subclass does

    def opened(self) -> None:
        """Have `self._channel` set up, and call `become_ready` once it is."""
        raise NotImplementedError

    def lost(self) -> None:
        """Forget what was under way on the channel."""

    # What a subclass calls

    def become_ready(self) -> None:
        """Note that the channel works."""
        self.ready = True
        self._complaints.clear()
        _LOG.info("%s is connected to %s", self.name, self._node)

    def drop(self, why: str) -> None:
        """Close the connection and make another."""
        self._lose(why)
        if self._connection is not None and self._connection.is_open:
            self._connection.close()

    # What pika calls

    @property
    def _node(self) -> Address:
        return self._nodes[self._next % len(self._nodes)]

    def _connect(self) -> None:
        if self._stopping:
            return
        self._connection = None
        try:
            self._connection = _Connection(
                parameters(self._settings, self._node, self._tls, self.name),
                on_open_callback=self._on_open,
                on_open_error_callback=self._on_open_error,
                on_close_callback=self._on_close,
                custom_ioloop=asyncio.get_running_loop(),
            )
        except (SettingsError, OSError) as error:
            self._complain(error)
            self._again()

    def _on_open(self, connection: Any) -> None:  # noqa: ANN401
        if connection is not self._connection:  # stopped meanwhile
            connection.close()
            return
        connection.add_on_connection_blocked_callback(lambda *_: self.blocked())
        connection.add_on_connection_unblocked_callback(lambda *_: self.unblocked())
        connection.channel(on_open_callback=self._on_channel)

    def blocked(self) -> None:
        """Act on a broker that takes no messages for now, being short of memory or disk."""

    def unblocked(self) -> None:
        """Act on a broker that takes messages again."""

    def _on_channel(self, channel: Any) -> None:  # noqa: ANN401
        self._channel = channel
        channel.add_on_close_callback(self._on_channel_close)
        channel.add_on_cancel_callback(lambda _: self.drop("the broker cancelled a consumer"))
        self.opened()

    def _on_channel_close(self, channel: Any, error: BaseException) -> None:  # noqa: ANN401
        if channel is self._channel:
            self._complain(error)
            self.drop(repr(error))

    def _on_open_error(self, connection: Any, error: Any) -> None:  # noqa: ANN401
        if connection is self._connection:
            self._complain(error)
            self._again()

    def _on_close(self, connection: Any, error: BaseException) -> None:  # noqa: ANN401
        if connection is self._connection:
            self._lose(repr(error))
            self._again()

    def _lose(self, why: str) -> None:
        if self.ready:
            _LOG.log(logging.INFO if self._stopping else logging.WARNING, "%s lost %s: %s", self.name, self._node, why)
        self.ready = False
        self._channel = None
        self.lost()

    def _complain(self, error: object) -> None:
        # Once a reason, not once an attempt.
        complaint = f"{self.name} cannot work with {self._node}: {error!r}"
        if complaint not in self._complaints:
            self._complaints.add(complaint)
            _LOG.warning(complaint)

    def _again(self) -> None:
        if self._stopping:
            return
        self._next += 1
        # Another node is tried at once; one that was tried already a little later, and not by everybody together.
        wait = 0.05 if self._next % len(self._nodes) else 0.4 + random.random() * 0.2  # noqa: S311
        asyncio.get_running_loop().call_later(wait, self._connect)
