"""Messages that settled no order: an operator lists them, looks at them, sends them again or gives them up.

What is looked at is held unacknowledged and goes back when the connection ends, however often; its place in the queue may be
another then. Meanwhile nobody else sees it: of two operators at once each sees a part.
"""

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
import pika
from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.exceptions import AMQPConnectionError, AMQPError, ChannelClosedByBroker, NackError, UnroutableError

from orders.broker import parameters
from orders.errors import CommandError
from orders.ordering.bundles import split
from orders.settings import Settings
from orders.worker.reading import DeadLetterError, parse

QUEUE = "intake-dead"
_LANE = re.compile(r"intake-[0-9]+")
_IDENTIFIER = re.compile(r"[A-Za-z0-9][!-~]{0,63}")
# What brokers write; a message that is sent again begins anew.
_BROKERS_HEADERS = re.compile(r"x-(death|first-death-.*|last-death-.*|delivery-count|acquired-count)")
_HEARTBEAT_SECONDS = 20  # whoever reads the output may take their time


class DeadLetter(NamedTuple):
    """A message as it lies in the queue of dead letters."""

    tag: int
    properties: Any
    body: bytes

    @property
    def identifier(self) -> str:
        """Name it by: its own, where that is one, else its body's hash. More than one message can have it."""
        own = self.properties.message_id
        if own and _IDENTIFIER.fullmatch(own):
            return str(own)
        return f"sha256-{hashlib.sha256(self.body).hexdigest()[:16]}"

    @property
    def origin(self) -> str:
        """The queue of the intake that it came from; empty where it does not say."""
        queue = self._headers.get("x-first-death-queue")
        return queue if isinstance(queue, str) and _LANE.fullmatch(queue) else ""

    @property
    def reason(self) -> str:
        """Why the broker made a dead letter of it."""
        return str(self._headers.get("x-first-death-reason", "unknown"))

    @property
    def died_at(self) -> str:
        """When it came here; empty where it does not say."""
        deaths = self._headers.get("x-death")
        time = deaths[0].get("time") if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict) else None
        return time.replace(tzinfo=UTC).isoformat().replace("+00:00", "Z") if isinstance(time, datetime) else ""

    @property
    def fault(self) -> str:
        """What keeps it, or one of its orders, from being one by what this version knows; empty: nothing does."""
        for number, body in enumerate(self.bodies, 1):
            try:
                parse(body)
            except DeadLetterError as error:
                return f"order {number}: {error}" if len(self.bodies) > 1 else str(error)
        return ""

    @property
    def bodies(self) -> Sequence[bytes]:
        """Those of its orders: of one, or of a bundle's."""
        return split(self.properties.type, self.body)

    @property
    def _headers(self) -> dict[str, Any]:
        return self.properties.headers or {}

    def again(self) -> pika.BasicProperties:
        """Return its properties without what its death left."""
        kept = {name: value for name, value in self._headers.items() if not _BROKERS_HEADERS.fullmatch(name)}
        found = self.properties
        return pika.BasicProperties(
            content_type=found.content_type,
            content_encoding=found.content_encoding,
            headers=kept or None,
            delivery_mode=2,
            correlation_id=found.correlation_id,
            message_id=found.message_id,
            timestamp=found.timestamp,
            type=found.type,
        )

    def line(self) -> str:
        """Return it as a line of a list."""
        orders = f" of {len(self.bodies)} orders" if len(self.bodies) > 1 else ""
        size = f"{len(self.body)} bytes{orders}"
        fields = (self.identifier, self.died_at or "-", self.origin or "-", self.reason, size)
        return _printable("  ".join((*fields, self.fault or "could be settled now")))

    def text(self) -> str:
        """Return all of it for people to read: JSON where it is JSON, else what can be printed of it."""
        try:
            # Reformatted, not decoded: a name that stands twice is shown twice.
            lines = msgspec.json.format(self.body, indent=2).decode().split("\n")
            body = "\n".join("".join(c if _is_plain(c) else json.dumps(c)[1:-1] for c in line) for line in lines)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            body = _printable(self.body.decode("ascii", "backslashreplace"))
        return f"{self.line()}\n{body}"


def _printable(text: str) -> str:
    """Return a text that does nothing to a terminal: whoever wrote the message chose it."""
    return "".join(c if _is_plain(c) else c.encode("unicode_escape").decode() for c in text)


def _is_plain(character: str) -> bool:
    return character.isascii() and character.isprintable()


class DeadLetters:
    """The queue, by a channel that holds what it has looked at."""

    def __init__(self, channel: Any) -> None:  # noqa: ANN401
        self.channel = channel

    def __iter__(self) -> Iterator[DeadLetter]:
        """Look at each message that is there now, once."""
        return self.of(QUEUE)

    def of(self, queue: str) -> Iterator[DeadLetter]:
        """Look at each message that is in a queue now, once: those of the intake may become dead letters yet."""
        method, properties, body = self.channel.basic_get(queue)
        left = method.message_count if method else 0
        while method is not None:
            yield DeadLetter(method.delivery_tag, properties, body)
            if not left:  # what came since, maybe again, is for another time
                return
            left -= 1
            method, properties, body = self.channel.basic_get(queue)

    def replay(self, letter: DeadLetter) -> str:
        """Send a message to the queue that it came from, and take it from here once that has it. Return why not, if not.

        An order that was decided meanwhile stays what it is: settlement knows it.
        """
        if not letter.origin:
            return "it does not say which queue of the intake it came from"
        try:
            self.channel.basic_publish("", letter.origin, letter.body, letter.again(), mandatory=True)
        except UnroutableError:
            return f"there is no queue {letter.origin}"
        except NackError:
            return f"{letter.origin} does not take it"
        self.channel.basic_ack(letter.tag)
        return ""

    def drop(self, letter: DeadLetter) -> None:
        """Give a message up."""
        self.channel.basic_ack(letter.tag)


@contextmanager
def dead_letters(settings: Settings) -> Iterator[DeadLetters]:
    """Open the dead letters, at the first broker that answers.

    Raises:
        CommandError: none does, none lets us in, or the connection broke: what was not told to be done may be or not.
    """
    nodes, tls = settings.addresses("rabbitmq_nodes"), settings.tls()
    names = ", ".join(map(str, nodes))
    try:
        connection = pika.BlockingConnection(
            [parameters(settings, node, tls, "dead letters", heartbeat=_HEARTBEAT_SECONDS) for node in nodes]
        )
    except (AMQPConnectionError, AMQPConnectorException, OSError) as error:
        raise CommandError(f"No broker of {names} lets us in: {_told(error)}") from error
    try:
        channel = connection.channel()
        channel.confirm_delivery()
        yield DeadLetters(channel)
        channel.close()  # once this is answered, the broker has every acknowledgement
    except ChannelClosedByBroker as error:
        raise CommandError(f"The broker refuses: {error.reply_code} {error.reply_text}") from error
    except AMQPError as error:
        raise CommandError(f"The connection to the broker broke: {_told(error)}") from error
    finally:
        with suppress(AMQPError):
            connection.close()


def _told(error: BaseException) -> str:
    # pika puts what went wrong into what it raises, some layers down.
    while isinstance(error, AMQPConnectionError) and error.args and isinstance(error.args[0], BaseException):
        error = error.args[0]
    return _printable(repr(error))


def run(settings: Settings, arguments: argparse.Namespace) -> None:
    """Do what an operator asked for; exit with 1 if a message was not there, or stays.

    Raises:
        CommandError: no broker lets us at the dead letters.
    """
    {"list": _list, "show": _show, "replay": _replay, "drop": _drop}[arguments.action](settings, arguments)


def _list(settings: Settings, arguments: argparse.Namespace) -> None:
    lines: list[str] = []
    with dead_letters(settings) as letters:
        for letter in letters:
            if len(lines) == arguments.limit:
                print(f"orders: there are more than {arguments.limit}: --limit", file=sys.stderr)
                break
            lines.append(letter.line())
    # After the connection's end: a reader who takes time keeps nothing from others.
    for line in lines:
        print(line)


def _show(settings: Settings, arguments: argparse.Namespace) -> None:
    with dead_letters(settings) as letters:
        found = [letter.text() for letter in letters if letter.identifier == arguments.id]
    for text in found:
        print(text)
    _end([arguments.id] if not found else [])


def _replay(settings: Settings, arguments: argparse.Namespace) -> None:
    failures = 0

    def replay(letters: DeadLetters, letter: DeadLetter) -> None:
        nonlocal failures
        if why_not := letters.replay(letter):
            failures += 1
            print(f"orders: {letter.identifier} stays: {why_not}", file=sys.stderr)
        else:
            print(f"replayed {letter.identifier} to {letter.origin}", flush=True)

    _end(_each(settings, arguments, replay), failures)


def _drop(settings: Settings, arguments: argparse.Namespace) -> None:
    def drop(letters: DeadLetters, letter: DeadLetter) -> None:
        print(f"dropped {letter.text()}", flush=True)  # first: what cannot be printed is kept
        letters.drop(letter)

    _end(_each(settings, arguments, drop))


def _each(
    settings: Settings, arguments: argparse.Namespace, act: Callable[[DeadLetters, DeadLetter], None]
) -> Collection[str]:
    """Act on every message that was named, or on all, and return the names that none has."""
    missing = {*arguments.ids}
    with dead_letters(settings) as letters:
        for letter in letters:
            if arguments.all or letter.identifier in arguments.ids:
                act(letters, letter)
                missing.discard(letter.identifier)
    return missing


def _end(missing: Collection[str], failures: int = 0) -> None:
    for identifier in sorted(missing):
        print(f"orders: no dead letter has the id {_printable(identifier)}", file=sys.stderr)
    if missing or failures:
        sys.exit(1)
