"""Whether this process lives, is ready, and what its figures are."""

from typing import Any

from litestar import Request, Response, get
from litestar.di import NamedDependency
from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder

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
async def figures(request: Request[Any, Any, Any]) -> Response[bytes]:
    """Return the figures for Prometheus; with examples of traces, if it takes OpenMetrics."""
    encode, media_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(REGISTRY), media_type=media_type)
