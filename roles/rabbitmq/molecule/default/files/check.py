"""Ask the brokers over AMQP what the order service's user may do, and what becomes of its messages."""

from __future__ import annotations

import json
import ssl
import sys
import time
import uuid
from collections.abc import Callable

import pika
from pika.adapters.blocking_connection import BlockingChannel

QUEUES = ("intake-1", "intake-2", "intake-3")
WAITING_QUEUES = tuple(f"webhook-retry-{number}" for number in range(1, 6))
REDELIVERIES = 25


def connect(address: str, user: str, password: str, vhost: str, ca_file: str) -> pika.BlockingConnection:
    """Return an open connection, over verified TLS."""
    context = ssl.create_default_context(cafile=ca_file)
    return pika.BlockingConnection(
        pika.ConnectionParameters(
            host=address,
            port=5671,
            virtual_host=vhost,
            credentials=pika.PlainCredentials(user, password),
            ssl_options=pika.SSLOptions(context, server_hostname=address),
            blocked_connection_timeout=10,
        )
    )


def publish(channel: BlockingChannel, queue: str, body: bytes) -> None:
    """Publish and wait for the confirm; raise where the message is not routed or not confirmed."""
    properties = pika.BasicProperties(delivery_mode=2)
    channel.basic_publish("", queue, body, properties, mandatory=True)


def take(
    channel: BlockingChannel, queue: str, body: bytes, seconds: float = 15
) -> tuple[pika.spec.Basic.GetOk, pika.BasicProperties]:
    """Return the delivery of a message, which stays unacknowledged; others in the queue are not expected."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        method, properties, found = channel.basic_get(queue)
        if method and found == body:
            return method, properties
        if method:
            channel.basic_nack(method.delivery_tag, requeue=True)
        time.sleep(0.1)
    raise AssertionError(f"{queue} does not give {body!r} back")


def refused(connection: pika.BlockingConnection, what: str, act: Callable[[BlockingChannel], object]) -> None:
    """Raise unless the broker answers an act with ACCESS_REFUSED."""
    channel = connection.channel()
    channel.confirm_delivery()
    try:
        act(channel)
    except pika.exceptions.ChannelClosedByBroker as error:
        if error.reply_code == 403:
            return
        raise
    raise AssertionError(f"{what} was not refused")


def keeps_events(connection: pika.BlockingConnection) -> None:
    """Raise unless an event is in the stream, and is still there for whoever reads it again."""
    channel = connection.channel()
    channel.confirm_delivery()
    body = f"verify {uuid.uuid4()}".encode()
    channel.basic_publish("events", "order.settled", body, pika.BasicProperties(delivery_mode=2), mandatory=True)
    for _ in range(2):
        reader = connection.channel()
        reader.basic_qos(prefetch_count=10)
        for method, _, found in reader.consume("events", arguments={"x-stream-offset": "first"}, inactivity_timeout=15):
            if method is None:
                raise AssertionError(f"events does not give {body!r}")
            reader.basic_ack(method.delivery_tag)
            if found == body:
                break
        reader.cancel()


def waits(connection: pika.BlockingConnection) -> None:
    """Raise unless a message that waited comes back, no earlier and not much later than it asked for."""
    channel = connection.channel()
    channel.confirm_delivery()
    began = time.monotonic()
    for queue in WAITING_QUEUES:
        properties = pika.BasicProperties(delivery_mode=2, expiration="1500")
        channel.basic_publish("", queue, queue.encode(), properties, mandatory=True)
    seen: set[bytes] = set()
    while len(seen) < len(WAITING_QUEUES) and time.monotonic() < began + 15:
        method, _, found = channel.basic_get("webhook-due", auto_ack=True)
        if method:
            seen.add(found)
            if time.monotonic() < began + 1.4:
                raise AssertionError(f"{found!r} did not wait")
    if seen != {queue.encode() for queue in WAITING_QUEUES}:
        raise AssertionError(f"webhook-due gives only {sorted(seen)}")
    refused(connection, "reading what waits", lambda channel: channel.basic_get("webhook-retry-1"))


def main() -> int:
    """Check everything and say how often."""
    config = json.load(sys.stdin)
    ca_file, address = config["ca_file"], config["address"]
    password = config["orders_password"]
    connection = connect(address, "orders", password, "orders", ca_file)
    for queue in QUEUES:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare(queue, passive=True)
        body = f"verify {uuid.uuid4()}".encode()
        publish(channel, queue, body)
        for _ in range(REDELIVERIES):
            method, _ = take(channel, queue, body)
            channel.basic_nack(method.delivery_tag, requeue=True)
        method, properties = take(channel, queue, body)
        count = properties.headers.get("x-delivery-count", 0)
        if count < REDELIVERIES:
            raise AssertionError(f"{queue} counts {count} deliveries")
        channel.basic_reject(method.delivery_tag, requeue=False)
        for _ in range(REDELIVERIES):
            method, _ = take(channel, "intake-dead", body)
            channel.basic_nack(method.delivery_tag, requeue=True)
        method, properties = take(channel, "intake-dead", body)
        if properties.headers["x-death"][0]["queue"] != queue:
            raise AssertionError(f"{queue}: dead letter says {properties.headers['x-death']}")
        channel.basic_ack(method.delivery_tag)
    keeps_events(connection)
    waits(connection)
    refused(connection, "declaring a queue", lambda channel: channel.queue_declare("intake-9"))
    refused(connection, "deleting a queue", lambda channel: channel.queue_delete("intake-1"))
    refused(connection, "deleting the dead letters", lambda channel: channel.queue_delete("intake-dead"))
    refused(connection, "another exchange", lambda channel: channel.basic_publish("amq.fanout", "", b""))
    refused(connection, "deleting the stream", lambda channel: channel.queue_delete("events"))
    refused(connection, "binding", lambda channel: channel.queue_bind("intake-1", "amq.topic", "#"))
    connection.close()
    for user, secret, vhost in (("orders", password, "/"), ("orders", "wrong", "orders"), ("guest", "guest", "orders")):
        try:
            connect(address, user, secret, vhost, ca_file)
        except (pika.exceptions.ProbableAuthenticationError, pika.exceptions.ProbableAccessDeniedError):
            continue
        except pika.exceptions.AMQPConnectionError as error:
            if "403" in repr(error) or "530" in repr(error):
                continue
            raise
        raise AssertionError(f"{user} got into {vhost}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
