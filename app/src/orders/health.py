"""Whether this process lives, is ready, and what its figures are."""

from litestar import Response, get
from litestar.di import NamedDependency
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from orders.access.keys import Keys
from orders.access.schemas import Access
from orders.database import Database
from orders.errors import Health, UnavailableError
from orders.ordering.publisher import Publisher
from orders.problems import problems


@get("/livez", access=Access.PUBLIC, operation_id="Livez", tags=["Operation"])
async def livez() -> Health:
    """Say that the process answers."""
    return Health()


@get(
    "/readyz",
    access=Access.PUBLIC,
    operation_id="Readyz",
    tags=["Operation"],
    responses=problems(s503="Not ready; the detail says why."),
)
async def readyz(
    publisher: NamedDependency[Publisher], database: NamedDependency[Database], keys: NamedDependency[Keys]
) -> Health:
    """Say whether requests are welcome. Database and identity provider may go away later: orders are taken without them.

    Raises:
        UnavailableError: with the reasons; the client gets 503.
    """
    reasons = []
    if not publisher.ready:
        reasons.append("No lane of the order intake is connected to its broker.")
    if not await database.reached():
        reasons.append("The database was not reached since the start.")
    if not keys.ring:
        reasons.append("The identity provider's keys were not read since the start.")
    if reasons:
        raise UnavailableError(" ".join(reasons))
    return Health()


@get("/metrics", access=Access.PUBLIC, include_in_schema=False)
async def figures() -> Response[bytes]:
    """Return the figures for Prometheus."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
