"""The one place where the service is put together."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from litestar import Litestar, Router
from litestar.di import Provide
from litestar.openapi import OpenAPIConfig

from orders.access.controller import BrowserController
from orders.access.guards import COMPONENTS, Guard, provide_caller, require_declarations
from orders.access.keys import Keys
from orders.access.provider import Provider
from orders.access.schemas import Access
from orders.access.sessions import Sessions
from orders.access.store import Store
from orders.access.tokens import Tokens
from orders.catalogue.controller import CatalogueController
from orders.catalogue.service import Catalogue
from orders.customers.controller import CustomerController, ProfileController
from orders.customers.service import Profiles
from orders.database import Database
from orders.document import DocumentPlugin, name_all_methods
from orders.events.controller import EventController
from orders.events.service import Events
from orders.events.stream import Hub
from orders.health import figures, livez, readyz
from orders.hints import Hints
from orders.instrument import Instrument
from orders.ledger.controller import LedgerController
from orders.ledger.service import Ledger
from orders.ordering.controller import MOST_BYTES, OrderController
from orders.ordering.identity import Identities
from orders.ordering.publisher import Publisher
from orders.ordering.service import Orders
from orders.problems import problem_response
from orders.sealing import sealer
from orders.settings import Settings
from orders.tracing import Tracer
from orders.web.pages import PageController
from orders.webhooks.controller import WebhookController
from orders.webhooks.service import Webhooks
from orders.webhooks.targets import Targets


def _shared(part: object) -> Provide:
    return Provide(lambda: part, sync_to_thread=False)


def _at_sigterm(act: Callable[[], None]) -> None:
    """Have something done on SIGTERM, beside what the server does: it waits for requests to end, and streams never would."""
    loop = asyncio.get_running_loop()
    # The event loop hears of a signal by its wake-up file, whatever this handler is.
    signal.signal(signal.SIGTERM, lambda *_: loop.call_soon_threadsafe(act))
    signal.siginterrupt(signal.SIGTERM, False)


def create_app(settings: Settings | None = None) -> Instrument:
    """Build the application; without settings they come from the environment.

    Raises:
        SettingsError: a required variable or secret is missing or malformed; the message names it.
        ImproperlyConfiguredException: a route does not declare who may call it.
    """
    settings = settings or Settings.from_environment()
    tracer = Tracer(settings, "orders-api")
    database = Database(settings)
    hints = Hints(settings)
    keys = Keys(settings, hints)
    tokens = Tokens(settings, keys)
    browsers = settings.browsers()
    provider = Provider(settings, browsers) if browsers else None
    sessions = Sessions(browsers, Store(settings), provider, tokens) if browsers and provider else None
    publisher = Publisher(settings)
    identities = Identities(settings.hmac_keys())
    orders = Orders(identities, publisher, hints, database)
    catalogue = Catalogue(database, hints)
    seals = sealer(settings)
    profiles = Profiles(database, seals)
    targets = Targets(settings.webhooks())
    hub = Hub(settings)

    @asynccontextmanager
    async def connections(_app: Litestar) -> AsyncIterator[None]:
        tracer.start()
        hints.start()
        keys.start()
        publisher.start()
        if sessions:
            sessions.start()
        _at_sigterm(hub.drain)
        yield
        await hub.stop()
        targets.close()
        if sessions:
            await sessions.stop()
        await publisher.stop()
        await keys.stop()
        await hints.stop()
        await tracer.stop()

    parts = {
        "catalogue": catalogue,
        "orders": orders,
        "ledger": Ledger(identities, database),
        "profiles": profiles,
        "provider": provider,
        "sessions": sessions,
        "events": Events(hub, orders, database),
        "webhooks": Webhooks(database, seals, targets),
        "publisher": publisher,
        "database": database,
        "keys": keys,
    }
    app = Litestar(
        route_handlers=[
            *(
                BrowserController,
                CatalogueController,
                CustomerController,
                EventController,
                LedgerController,
                OrderController,
                PageController,
                ProfileController,
                WebhookController,
            ),
            *(livez, readyz, figures),
        ],
        dependencies={name: _shared(part) for name, part in parts.items()}
        | {"caller": Provide(provide_caller, sync_to_thread=False)},
        guards=[Guard(tokens, sessions, settings.public_url)],
        lifespan=[database.lifespan, connections],
        exception_handlers={Exception: problem_response},
        request_max_body_size=MOST_BYTES,
        openapi_config=OpenAPIConfig(
            title="Orders",
            version="1",
            components=COMPONENTS,
            openapi_router=Router(
                "/v1/schema", route_handlers=[], include_in_schema=False, opt={"access": Access.PUBLIC}
            ),
            render_plugins=[DocumentPlugin(path="/openapi.json")],
        ),
        logging_config=None,
    )
    require_declarations(app)
    name_all_methods(app)
    return Instrument(app, tracer)
