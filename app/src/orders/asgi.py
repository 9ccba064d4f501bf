"""The one place where the service is put together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from litestar import Litestar
from litestar.di import Provide
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.types import ASGIApp

from orders.catalogue.controller import CatalogueController
from orders.catalogue.service import Catalogue
from orders.database import Database
from orders.health import figures, livez, readyz
from orders.hints import Hints
from orders.instrument import Instrument
from orders.ordering.controller import MOST_BYTES, OrderController
from orders.ordering.identity import Identities
from orders.ordering.publisher import Publisher
from orders.ordering.service import Orders
from orders.problems import problem_response
from orders.settings import Settings


def _shared(part: object) -> Provide:
    return Provide(lambda: part, sync_to_thread=False)


def create_app(settings: Settings | None = None) -> ASGIApp:
    """Build the application; without settings they come from the environment.

    Raises:
        SettingsError: a required variable or secret is missing or malformed; the message names it.
    """
    settings = settings or Settings.from_environment()
    database = Database(settings)
    hints = Hints(settings)
    publisher = Publisher(settings)
    orders = Orders(Identities(settings.hmac_keys()), publisher, hints, database)
    catalogue = Catalogue(database)

    @asynccontextmanager
    async def connections(_app: Litestar) -> AsyncIterator[None]:
        hints.start()
        publisher.start()
        yield
        await publisher.stop()
        await hints.stop()

    parts = {"catalogue": catalogue, "orders": orders, "publisher": publisher, "database": database}
    app = Litestar(
        route_handlers=[CatalogueController, OrderController, livez, readyz, figures],
        dependencies={name: _shared(part) for name, part in parts.items()},
        lifespan=[database.lifespan, connections],
        exception_handlers={Exception: problem_response},
        request_max_body_size=MOST_BYTES,
        openapi_config=OpenAPIConfig(
            title="Orders", version="1", path="/v1/schema", render_plugins=[JsonRenderPlugin(path="/openapi.json")]
        ),
        logging_config=None,
    )
    return Instrument(app)
