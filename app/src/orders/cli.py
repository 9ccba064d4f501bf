"""The command `orders`: each thing that a container of this image can be for."""

import argparse
import asyncio
import signal
import sys
from collections.abc import Callable

from orders.errors import CommandError
from orders.logs import log_config, set_up_logs
from orders.migrations import MigrationError, migrate
from orders.settings import Settings, SettingsError

# Of a request's line and headers; what is read at once may let a little more pass. The edge takes as much.
MOST_HEAD_BYTES = 16384


def _serve(settings: Settings, _arguments: argparse.Namespace) -> None:
    from granian import Granian  # noqa: PLC0415  (each command starts with what it needs only)
    from granian.constants import HTTPModes, Interfaces  # noqa: PLC0415
    from granian.http import HTTP1Settings  # noqa: PLC0415

    # A wrong setting ends this process here, in a line, rather than Granian's in a traceback.
    settings.hmac_keys()
    settings.field_keys()
    settings.identity_provider()
    settings.browsers()
    settings.traces()
    settings.webhooks()
    Granian(
        "orders.asgi:create_app",
        factory=True,
        interface=Interfaces.ASGI,
        address="0.0.0.0",  # noqa: S104  (the container's own network)
        port=settings.port,
        websockets=False,
        # What a host proxy speaks. HTTP/2 would be one more way to be attacked, with limits of its own.
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(max_buffer_size=MOST_HEAD_BYTES),
        log_dictconfig=log_config(settings.log_level),
        workers_kill_timeout=5,
    ).serve()


def _work(settings: Settings, _arguments: argparse.Namespace) -> None:
    from orders.worker.run import work  # noqa: PLC0415

    settings.field_keys()
    settings.webhooks()
    asyncio.run(work(settings))


def _migrate(settings: Settings, _arguments: argparse.Namespace) -> None:
    for name in migrate(settings):
        print(f"applied {name}")


def _seed(settings: Settings, arguments: argparse.Namespace) -> None:
    from orders.seed import seed, seed_customers  # noqa: PLC0415

    if arguments.products:
        print(f"made {seed(settings, products=arguments.products, stock=arguments.stock)} products")
    if arguments.customers:
        print(f"made {seed_customers(settings, customers=arguments.customers)} customers")


def _partitions(settings: Settings, arguments: argparse.Namespace) -> None:
    from orders.partitions import keep  # noqa: PLC0415

    changed = keep(settings, months=arguments.keep_months, ledger_months=arguments.keep_ledger_months)
    for name in changed.made:
        print(f"made {name}")
    for name in changed.closed:
        print(f"closed {name}")
    for name in changed.detached:
        print(f"detached {name}")
    for name in changed.kept:
        print(f"orders: {name} stays: it has events that are not published", file=sys.stderr)
    if changed.kept:
        sys.exit(1)


def _check(settings: Settings, arguments: argparse.Namespace) -> None:
    from orders.check import run  # noqa: PLC0415

    run(settings, arguments)


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least} on")
        return int(text)

    return number


def _dead_letters(settings: Settings, arguments: argparse.Namespace) -> None:
    from orders.dead_letters import run  # noqa: PLC0415

    run(settings, arguments)


def _add_dead_letters(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True)
    listing = actions.add_parser("list", help="a line each: id, time, queue, reason, size, what is wrong with it now")
    listing.add_argument("--limit", type=int, default=1000)
    showing = actions.add_parser("show", help="print all of a message")
    showing.add_argument("id", metavar="ID")
    for action, text in (
        ("replay", "send messages to the queues that they came from"),
        ("drop", "print messages and give them up, for good"),
    ):
        chosen = actions.add_parser(action, help=text).add_mutually_exclusive_group(required=True)
        chosen.add_argument("ids", nargs="*", default=[], metavar="ID")
        chosen.add_argument("--all", action="store_true")
    parser.set_defaults(run=_dead_letters)


def main() -> None:
    """Run one subcommand; exit with 2 on a wrong setting, with a line that names it."""
    # A container's first process without a handler of its own is deaf to SIGTERM: a stop would wait for the drain time.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    parser = argparse.ArgumentParser(prog="orders", description=__doc__)
    commands = parser.add_subparsers(required=True)
    commands.add_parser("serve", help="answer requests").set_defaults(run=_serve)
    commands.add_parser("worker", help="settle orders").set_defaults(run=_work)
    commands.add_parser("migrate", help="bring the database's schema up to date").set_defaults(run=_migrate)
    seeding = commands.add_parser(
        "seed", help="make a catalogue with stock, and profiles of customers, where there are none"
    )
    seeding.add_argument("--products", type=int, default=0)
    seeding.add_argument("--customers", type=int, default=0)
    seeding.add_argument("--stock", type=int, default=1_000_000)
    seeding.set_defaults(run=_seed)
    text = "make the partitions of the months to come, close those of the ledger that are over, and detach old ones"
    parting = commands.add_parser(
        "partitions",
        help=text,
        description=f"{text}. A detached one stays as a table of its own; balances keep what a closed month brought.",
    )
    parting.add_argument(
        "--keep-months", type=_at_least(1), required=True, metavar="N", help="detach events that ended N months ago"
    )
    parting.add_argument(
        "--keep-ledger-months",
        type=_at_least(1),
        metavar="N",
        help="the same of the ledger, which else keeps its months",
    )
    parting.set_defaults(run=_partitions)
    checking = commands.add_parser("check", help="see whether all that is written down fits together; 1: it does not")
    checking.add_argument(
        "--accepted",
        metavar="FILE",
        help="identifiers of orders, one a line, none of which may be lost; -: from the standard input",
    )
    checking.add_argument(
        "--outbox-seconds", type=_at_least(0), default=60, metavar="N", help="within which events are published"
    )
    checking.add_argument("--no-dead-letters", action="store_true", help="take a dead letter for a failure")
    checking.set_defaults(run=_check)
    _add_dead_letters(commands.add_parser("dead-letters", help="decide on messages that settled no order"))
    arguments = parser.parse_args()
    try:
        settings = Settings.from_environment()
        set_up_logs(settings.log_level)
        arguments.run(settings, arguments)
    except (SettingsError, MigrationError, CommandError) as error:
        print(f"orders: {error}", file=sys.stderr)
        sys.exit(2)
