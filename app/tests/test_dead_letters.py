"""An operator's commands for dead letters: nothing is lost by looking, by sending again, or by a broker that is away."""

import json
from collections.abc import Iterator

import pika
import pytest

from orders.dead_letters import dead_letters
from orders.errors import CommandError
from orders.settings import Settings
from servers import DEAD_QUEUE, QUEUES, frozen, wait_until
from service import Api, Platform, Products, Workers, same_order

pytestmark = pytest.mark.usefixtures("no_messages")

GARBAGE = b'{"no": "order"}'


@pytest.fixture
def narrow(platform: Platform) -> Iterator[str]:
    """Have one more queue of the intake, which refuses what it has no room for, and return its name."""
    queue = "intake-9"
    arguments = {"x-max-length": 1, "x-overflow": "reject-publish", "x-dead-letter-exchange": "dead-letters"}
    with platform.rabbitmq.connect() as connection:
        connection.channel().queue_declare(queue, durable=True, arguments={"x-queue-type": "classic", **arguments})
        yield queue
        connection.channel().queue_delete(queue)


def publish(platform: Platform, queue: str, body: bytes, message_id: str | None = None, **headers: str) -> None:
    """Put a message into a queue, as a publisher would."""
    with platform.rabbitmq.connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        properties = pika.BasicProperties(
            delivery_mode=2, message_id=message_id, headers=headers, content_type="application/json"
        )
        channel.basic_publish("", queue, body, properties, mandatory=True)


def kill(platform: Platform, *queues: str) -> None:
    """Make dead letters of all that is in queues."""
    with platform.rabbitmq.connect() as connection:
        channel = connection.channel()
        before, killed = dead(platform), 0
        for queue in queues:
            while (method := channel.basic_get(queue)[0]) is not None:
                channel.basic_reject(method.delivery_tag, requeue=False)
                killed += 1
    assert killed
    wait_until(lambda: dead(platform) == before + killed, "the dead letters", 20)


def bury(platform: Platform, name: str, body: bytes = GARBAGE, queue: str = "intake-2", **headers: str) -> None:
    """Have a dead letter."""
    publish(platform, queue, body, name, **headers)
    kill(platform, queue)


def dead(platform: Platform) -> int:
    """Return how many dead letters there are."""
    return platform.rabbitmq.depth(DEAD_QUEUE)


def settle_down(platform: Platform, count: int) -> None:
    """Return once so many dead letters can be seen: what was looked at is back."""
    wait_until(lambda: dead(platform) == count, f"{count} dead letters", 20)


def test_a_list_says_of_each_what_it_was_and_what_is_wrong_with_it_now(
    platform: Platform, api: Api, workers: Workers, name: str
) -> None:
    assert platform.finish("dead-letters", "list") == (0, "")
    publish(platform, "intake-2", GARBAGE, name)
    workers.start()
    wait_until(lambda: dead(platform) == 1, "the dead letter", 20)
    workers.stop()
    order = api.place({"P-00023": 1}, name, name).removeprefix("/v1/orders/")
    kill(platform, *QUEUES)
    status, output = platform.finish("dead-letters", "list")
    lines = {line.split("  ")[0]: line.split("  ")[1:] for line in output.splitlines()}
    assert (status, {*lines}) == (0, {name, order})
    died_at, *rest = lines[name]
    assert died_at.endswith("Z")
    assert rest == ["intake-2", "rejected", f"{len(GARBAGE)} bytes", "Object missing required field `id`"]
    assert lines[order][-1] == "could be settled now"
    settle_down(platform, 2)
    status, output = platform.finish("dead-letters", "list", "--limit", "1")
    assert (status, output.count("\n")) == (0, 2)
    assert "orders: there are more than 1: --limit\n" in output


def test_what_is_looked_at_stays_however_often(platform: Platform, name: str) -> None:
    bury(platform, name)
    settings = Settings.from_environment(platform.environment)
    for _ in range(25):  # RabbitMQ's own limit is 20
        with dead_letters(settings) as letters:
            found = [letter.identifier for letter in letters]
        assert found == [name]
        settle_down(platform, 1)


def test_a_message_is_shown_whole_and_does_nothing_to_a_terminal(platform: Platform, name: str) -> None:
    bury(platform, name, b'{"text": "\\u001b[2J\xc2\x9b", "text": "\xc3\xa9", "lines": [1]}')
    bury(platform, f"{name}\x1b[2J", b"\x1b[2J\xff\x00 no JSON")
    bury(platform, "", b"[" * 10_000)
    status, output = platform.finish("dead-letters", "show", name)
    assert (status, output.partition("\n")[2]) == (
        0,
        '{\n  "text": "\\u001b[2J\\u009b",\n  "text": "\\u00e9",\n  "lines": [\n    1\n  ]\n}\n',
    )
    settle_down(platform, 3)
    _, listed = platform.finish("dead-letters", "list")
    identifiers = [line.split("  ")[0] for line in listed.splitlines()]
    assert sum(identifier.startswith("sha256-") for identifier in identifiers) == 2
    texts = []
    for identifier in identifiers:
        settle_down(platform, 3)
        status, output = platform.finish("dead-letters", "show", identifier)
        assert status == 0
        texts.append(output.partition("\n")[2])
    assert "\\x1b[2J\\xff\\x00 no JSON\n" in texts
    assert all(character.isprintable() or character == "\n" for text in (listed, *texts) for character in text)


def test_an_order_that_is_sent_again_is_settled_once(
    platform: Platform, api: Api, workers: Workers, products: Products, name: str
) -> None:
    sku = products.create("A")
    products.stock("A", 10)
    address = api.place({sku: 3}, name, name)
    order = address.removeprefix("/v1/orders/")
    kill(platform, *QUEUES)
    status, output = platform.finish("dead-letters", "replay", order)
    assert (status, output.startswith(f"replayed {order} to intake-")) == (0, True)
    assert (dead(platform), platform.rabbitmq.depth(*QUEUES)) == (0, 1)
    workers.start()
    assert api.decided(address)["state"] == "settled"
    workers.stop()
    # And what is known by then is harmless.
    again = api.place({sku: 3}, name, name)
    assert same_order(again, address)
    kill(platform, *QUEUES)
    assert platform.finish("dead-letters", "replay", "--all")[0] == 0
    workers.start()
    wait_until(lambda: platform.rabbitmq.depth(*QUEUES) == 0, "its settlement", 20)
    workers.stop()
    assert (dead(platform), api.client.get(f"/v1/products/{sku}/record").json()["quantity"]) == (0, 7)


def test_what_is_sent_again_is_as_it_was_without_its_death(platform: Platform, name: str) -> None:
    bury(platform, name, traceparent="00-1-1-01")
    bury(platform, f"{name}-stays")
    assert platform.finish("dead-letters", "replay", name) == (0, f"replayed {name} to intake-2\n")
    with platform.rabbitmq.connect() as connection:
        _, properties, body = connection.channel().basic_get("intake-2", auto_ack=True)
    assert body == GARBAGE
    assert (properties.message_id, properties.delivery_mode, properties.content_type) == (name, 2, "application/json")
    assert {key: value for key, value in properties.headers.items() if key != "x-delivery-count"} == {
        "traceparent": "00-1-1-01"
    }
    settle_down(platform, 1)
    assert platform.finish("dead-letters", "list")[1].startswith(f"{name}-stays  ")


def test_what_is_no_order_still_comes_back(platform: Platform, workers: Workers, name: str) -> None:
    bury(platform, name)
    workers.start()
    for _ in range(2):
        assert platform.finish("dead-letters", "replay", "--all") == (0, f"replayed {name} to intake-2\n")
        settle_down(platform, 1)


def test_a_message_that_no_queue_takes_stays(platform: Platform, narrow: str, name: str) -> None:
    bury(platform, f"{name}-full", queue=narrow)
    publish(platform, narrow, GARBAGE)
    publish(platform, DEAD_QUEUE, GARBAGE, f"{name}-alone")
    bury(platform, f"{name}-taken")
    status, output = platform.finish("dead-letters", "replay", "--all")
    assert (status, sorted(output.splitlines())) == (
        1,
        [
            f"orders: {name}-alone stays: it does not say which queue of the intake it came from",
            f"orders: {name}-full stays: {narrow} does not take it",
            f"replayed {name}-taken to intake-2",
        ],
    )
    settle_down(platform, 2)
    with platform.rabbitmq.connect() as connection:
        connection.channel().queue_delete(narrow)
    assert platform.finish("dead-letters", "replay", f"{name}-full") == (
        1,
        f"orders: {name}-full stays: there is no queue {narrow}\n",
    )
    settle_down(platform, 2)


def test_what_is_dropped_is_printed_and_gone_and_nothing_else_is(platform: Platform, name: str) -> None:
    for number in (1, 2, 3):
        bury(platform, f"{name}-{number}", json.dumps({"number": number}).encode())
    status, output = platform.finish("dead-letters", "drop", f"{name}-1", f"{name}-3", f"{name}-4")
    assert (status, output.count("dropped "), '"number": 2' in output) == (1, 2, False)
    for expected in (f"dropped {name}-1  ", '\n  "number": 1\n', f"dropped {name}-3  ", '\n  "number": 3\n'):
        assert expected in output
    assert f"orders: no dead letter has the id {name}-4\n" in output
    settle_down(platform, 1)
    assert platform.finish("dead-letters", "drop", "--all")[0] == 0
    assert (dead(platform), platform.finish("dead-letters", "drop", "--all")) == (0, (0, ""))


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (("show", "none"), 1, "orders: no dead letter has the id none\n"),
        (("replay", "none"), 1, "orders: no dead letter has the id none\n"),
        (("drop",), 2, "error: one of the arguments ID --all is required\n"),
        (("replay", "x", "--all"), 2, "not allowed with argument"),
        ((), 2, "the following arguments are required: action\n"),
    ],
    ids=str,
)
def test_nothing_is_done_to_what_was_not_named(
    platform: Platform, name: str, arguments: tuple[str, ...], status: int, told: str
) -> None:
    bury(platform, name)
    found, output = platform.finish("dead-letters", *arguments)
    assert (found, told in output) == (status, True), output
    settle_down(platform, 1)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"ORDERS_RABBITMQ_NODES": "127.0.0.1:1,127.0.0.1:2"}, "No broker of 127.0.0.1:1, 127.0.0.1:2 lets us in"),
        ({"ORDERS_RABBITMQ_USER": "nobody"}, "lets us in: ProbableAuthenticationError"),
        ({"ORDERS_RABBITMQ_VHOST": "/"}, "lets us in: ProbableAccessDeniedError"),
        ({"ORDERS_SECRETS_DIR": "/nowhere"}, "The secret orders_rabbitmq_password cannot be read"),
    ],
    ids=str,
)
def test_who_is_not_let_in_is_told_in_a_line(platform: Platform, change: dict[str, str], told: str) -> None:
    status, output = platform.finish("dead-letters", "list", **change)
    assert (status, output.count("\n"), output.startswith("orders: ")) == (2, 1, True), output
    assert told in output


def test_a_broker_that_hangs_is_passed_by(platform: Platform, name: str) -> None:
    bury(platform, name)
    first, second, _ = platform.rabbitmq.addresses.split(",")
    with frozen(platform.rabbitmq.brokers[1]):
        status, output = platform.finish("dead-letters", "list", ORDERS_RABBITMQ_NODES=second)
        assert (status, output.count("\n"), f"No broker of {second} lets us in" in output) == (2, 1, True), output
        status, output = platform.finish("dead-letters", "list", ORDERS_RABBITMQ_NODES=f"{second},{first}")
        assert (status, output.startswith(f"{name}  ")) == (0, True), output


def test_the_service_may_read_dead_letters_and_neither_delete_nor_make_their_queue(platform: Platform) -> None:
    settings = Settings.from_environment(platform.environment)
    with dead_letters(settings) as letters:
        assert [*letters] == []
    for act in ("queue_delete", "queue_declare"):
        with (
            pytest.raises(CommandError, match="The broker refuses: 403 ACCESS_REFUSED"),
            dead_letters(settings) as letters,
        ):
            getattr(letters.channel, act)(DEAD_QUEUE)
