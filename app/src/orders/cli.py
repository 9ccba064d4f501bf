"""The command `orders`: each thing that a container of this image can be for."""

import argparse
import asyncio
import signal
import sys

from orders.logs import log_config, set_up_logs
from orders.migrations import MigrationError, migrate
from orders.seed import seed
from orders.settings import Settings, SettingsError


def _serve(settings: Settings, _arguments: argparse.Namespace) -> None:
    from granian import Granian  # noqa: PLC0415  (each command starts with what it needs only)
    from granian.constants import Interfaces  # noqa: PLC0415

    # A wrong setting ends this process here, in a line, rather than Granian's in a traceback.
    settings.hmac_keys()
    settings.identity_provider()
    settings.browsers()
    Granian(
        "orders.asgi:create_app",
        factory=True,
        interface=Interfaces.ASGI,
        address="0.0.0.0",  # noqa: S104  (the container's own network)
        port=settings.port,
        websockets=False,
        log_dictconfig=log_config(settings.log_level),
        workers_kill_timeout=5,
    ).serve()


def _work(settings: Settings, _arguments: argparse.Namespace) -> None:
    from orders.worker.run import work  # noqa: PLC0415

    asyncio.run(work(settings))


def _migrate(settings: Settings, _arguments: argparse.Namespace) -> None:
    for name in migrate(settings):
        print(f"applied {name}")


def _seed(settings: Settings, arguments: argparse.Namespace) -> None:
    print(f"made {seed(settings, products=arguments.products, stock=arguments.stock)} products")


def main() -> None:
    """Run one subcommand; exit with 2 on a wrong setting, with a line that names it."""
    # A container's first process without a handler of its own is deaf to SIGTERM: a stop would wait for the drain time.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    parser = argparse.ArgumentParser(prog="orders", description=__doc__)
    commands = parser.add_subparsers(required=True)
    commands.add_parser("serve", help="answer requests").set_defaults(run=_serve)
    commands.add_parser("worker", help="settle orders").set_defaults(run=_work)
    commands.add_parser("migrate", help="bring the database's schema up to date").set_defaults(run=_migrate)
    seeding = commands.add_parser("seed", help="make a catalogue with stock, where there is none")
    seeding.add_argument("--products", type=int, required=True)
    seeding.add_argument("--stock", type=int, default=1_000_000)
    seeding.set_defaults(run=_seed)
    arguments = parser.parse_args()
    try:
        settings = Settings.from_environment()
        set_up_logs(settings.log_level)
        arguments.run(settings, arguments)
    except (SettingsError, MigrationError) as error:
        print(f"orders: {error}", file=sys.stderr)
        sys.exit(2)
