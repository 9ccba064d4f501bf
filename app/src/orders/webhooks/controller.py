"""HTTP interface of webhooks: it parses, asks, and answers; it decides nothing else."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from litestar import Controller, Request, Response, delete, get, patch, post
from litestar.di import NamedDependency
from litestar.openapi.spec import (
    OpenAPIFormat,
    OpenAPIMediaType,
    OpenAPIType,
    Operation,
    Reference,
    RequestBody,
    Schema,
)
from litestar.params import FromPath, QueryParameter

from orders.access.guards import BEARER
from orders.access.schemas import Access, Caller
from orders.bodies import parse
from orders.errors import BadRequestError
from orders.problems import problems
from orders.webhooks.schemas import (
    CURSOR_PATTERN,
    MOST_DESCRIPTION,
    MOST_SIGNATURES_SECONDS,
    MOST_URL,
    SIGNATURES_SECONDS,
    TEXT_PATTERN,
    TYPES,
    URL_PATTERN,
    CreatedWebhook,
    Deliveries,
    NewReplay,
    NewWebhook,
    Replayed,
    Secret,
    Webhook,
    WebhookChange,
)
from orders.webhooks.schemas import Webhooks as WebhookList
from orders.webhooks.service import MOST_OF_ONE, Webhooks

T = TypeVar("T")

_NO_STORE = {"Cache-Control": "no-store"}
_EITHER = Access.CUSTOMER | Access.OPERATOR
_UNKNOWN_CALLER = "There is no access token, or it does not count."
_NO_ROLE = "The token gives neither the role customer nor the role operator."
_UNKNOWN = "There is no such webhook, or it is another's."
_AWAY = "The identity provider's keys are not known yet, or the primary does not answer."
_AWAY_FOR_CHANGES = (
    "The identity provider's keys are not known yet, or the primary does not answer: ask whether the change was made."
)
_MALFORMED = "A field is malformed, or nothing may be sent to `url`; `errors` says why."
_OFF = "The webhook is off."

_NEW, _CHANGE = msgspec.json.Decoder(NewWebhook), msgspec.json.Decoder(WebhookChange)
_REPLAY = msgspec.json.Decoder(NewReplay)

# The handlers decode bodies by themselves, so the document is told of them here.
_FIELDS: dict[str, Reference | Schema] = {
    "url": Schema(
        type=OpenAPIType.STRING,
        pattern=URL_PATTERN,
        max_length=MOST_URL,
        description="`https://` and a host whose addresses are all public. Redirects are not followed.",
    ),
    "types": Schema(
        type=OpenAPIType.ARRAY,
        items=Schema(type=OpenAPIType.STRING, enum=TYPES),
        max_items=len(TYPES),
        description="Of which events; empty: of all.",
    ),
    "description": Schema(type=OpenAPIType.STRING, pattern=TEXT_PATTERN, max_length=MOST_DESCRIPTION),
}
_NEW_SCHEMA = Schema(
    type=OpenAPIType.OBJECT,
    properties=_FIELDS,
    required=["url"],
    additional_properties=False,
    examples=[{"url": "https://hooks.example.com/orders", "types": ["order.shipped"], "description": "My shop"}],
)
_CHANGE_SCHEMA = Schema(
    type=OpenAPIType.OBJECT,
    properties=_FIELDS
    | {
        "enabled": Schema(
            type=OpenAPIType.BOOLEAN, description="Whether anything is sent to it: to switch it on again."
        )
    },
    additional_properties=False,
    examples=[{"enabled": True}],
)
_REPLAY_SCHEMA = Schema(
    type=OpenAPIType.OBJECT,
    properties={
        "since": Schema(
            type=OpenAPIType.STRING,
            format=OpenAPIFormat.DATE_TIME,
            description="Deliveries that failed of events from then on.",
        )
    },
    required=["since"],
    additional_properties=False,
    examples=[{"since": "2026-01-31T00:00:00Z"}],
)


def _body(schema: Schema) -> RequestBody:
    return RequestBody({"application/json": OpenAPIMediaType(schema)}, required=True)


@dataclass
class NewWebhookOperation(Operation):
    """An operation with the body of a new webhook."""

    def __post_init__(self) -> None:
        """Describe the body."""
        self.request_body = _body(_NEW_SCHEMA)


@dataclass
class WebhookChangeOperation(Operation):
    """An operation with the body of a webhook's change."""

    def __post_init__(self) -> None:
        """Describe the body."""
        self.request_body = _body(_CHANGE_SCHEMA)


@dataclass
class NewReplayOperation(Operation):
    """An operation with the body that says which deliveries are made again."""

    def __post_init__(self) -> None:
        """Describe the body."""
        self.request_body = _body(_REPLAY_SCHEMA)


async def _read(decoder: msgspec.json.Decoder[T], request: Request[Caller, Any, Any]) -> T:
    return parse(decoder, request.headers.get("content-type", ""), await request.body())


class WebhookController(Controller):
    """Webhooks: where events are sent to, and what came of it."""

    path = "/v1/webhooks"
    tags = ["Webhooks"]

    @get(
        access=_EITHER,
        security=BEARER,
        operation_id="ListWebhooks",
        responses=problems(s401=_UNKNOWN_CALLER, s403=_NO_ROLE, s503=_AWAY),
    )
    async def list_webhooks(
        self, caller: NamedDependency[Caller], webhooks: NamedDependency[Webhooks]
    ) -> Response[WebhookList]:
        """List the webhooks of the token's subject; an operator's are those of all operators."""
        return Response(WebhookList(await webhooks.all(caller)), headers=_NO_STORE)

    @post(
        access=_EITHER,
        security=BEARER,
        operation_id="CreateWebhook",
        operation_class=NewWebhookOperation,
        responses=problems(
            s400=_MALFORMED,
            s401=_UNKNOWN_CALLER,
            s403=_NO_ROLE,
            s409=f"There are {MOST_OF_ONE} already.",
            s413="The body is too large.",
            s415="The body is not application/json.",
            s503=_AWAY_FOR_CHANGES,
        ),
    )
    async def create_webhook(
        self, request: Request[Caller, Any, Any], caller: NamedDependency[Caller], webhooks: NamedDependency[Webhooks]
    ) -> Response[CreatedWebhook]:
        """Have events of one's own orders sent somewhere from now on, as an operator those of all orders.

        The secret that they are signed by is in this answer only.
        """
        made = await webhooks.create(caller, await _read(_NEW, request))
        return Response(made, headers={"Location": f"/v1/webhooks/{made.id}", **_NO_STORE})

    @get(
        "/{webhook_id:str}",
        access=_EITHER,
        security=BEARER,
        operation_id="GetWebhook",
        responses=problems(s401=_UNKNOWN_CALLER, s403=_NO_ROLE, s404=_UNKNOWN, s503=_AWAY),
    )
    async def get_webhook(
        self, caller: NamedDependency[Caller], webhooks: NamedDependency[Webhooks], webhook_id: FromPath[str]
    ) -> Response[Webhook]:
        """Return a webhook, whether it fails, and if it is off, why."""
        return Response(await webhooks.get(caller, webhook_id), headers=_NO_STORE)

    @patch(
        "/{webhook_id:str}",
        access=_EITHER,
        security=BEARER,
        operation_id="ChangeWebhook",
        operation_class=WebhookChangeOperation,
        responses=problems(
            s400=_MALFORMED,
            s401=_UNKNOWN_CALLER,
            s403=_NO_ROLE,
            s404=_UNKNOWN,
            s413="The body is too large.",
            s415="The body is not application/json.",
            s503=_AWAY_FOR_CHANGES,
        ),
    )
    async def change_webhook(
        self,
        request: Request[Caller, Any, Any],
        caller: NamedDependency[Caller],
        webhooks: NamedDependency[Webhooks],
        webhook_id: FromPath[str],
    ) -> Response[Webhook]:
        """Change what is given, and leave the rest. `"enabled": true` switches it on again, whatever switched it off."""
        return Response(await webhooks.change(caller, webhook_id, await _read(_CHANGE, request)), headers=_NO_STORE)

    @delete(
        "/{webhook_id:str}",
        access=_EITHER,
        security=BEARER,
        operation_id="DeleteWebhook",
        responses=problems(s401=_UNKNOWN_CALLER, s403=_NO_ROLE, s404=_UNKNOWN, s503=_AWAY_FOR_CHANGES),
    )
    async def delete_webhook(
        self, caller: NamedDependency[Caller], webhooks: NamedDependency[Webhooks], webhook_id: FromPath[str]
    ) -> None:
        """Send nothing there any more, and forget what was sent."""
        await webhooks.delete(caller, webhook_id)

    @post(
        "/{webhook_id:str}/secret",
        access=_EITHER,
        security=BEARER,
        operation_id="RotateWebhookSecret",
        status_code=200,
        responses=problems(
            s400="A parameter is malformed; `errors` names it.",
            s401=_UNKNOWN_CALLER,
            s403=_NO_ROLE,
            s404=_UNKNOWN,
            s503=_AWAY_FOR_CHANGES,
        ),
    )
    async def rotate_secret(
        self,
        caller: NamedDependency[Caller],
        webhooks: NamedDependency[Webhooks],
        webhook_id: FromPath[str],
        overlap_seconds: Annotated[
            int,
            QueryParameter(
                ge=0,
                le=MOST_SIGNATURES_SECONDS,
                description="For how long the secret of now signs too; 0: it is known to others.",
            ),
        ] = SIGNATURES_SECONDS,
    ) -> Response[Secret]:
        """Give a webhook a new secret, told this once. For a while there are two signatures, the new one first."""
        return Response(await webhooks.rotate(caller, webhook_id, overlap_seconds), headers=_NO_STORE)

    @get(
        "/{webhook_id:str}/deliveries",
        access=_EITHER,
        security=BEARER,
        operation_id="ListWebhookDeliveries",
        responses=problems(
            s400="A parameter is malformed; `errors` names it.",
            s401=_UNKNOWN_CALLER,
            s403=_NO_ROLE,
            s404=_UNKNOWN,
            s503=_AWAY,
        ),
    )
    async def list_deliveries(
        self,
        *,
        caller: NamedDependency[Caller],
        webhooks: NamedDependency[Webhooks],
        webhook_id: FromPath[str],
        wanted: Annotated[
            Literal["pending", "delivered", "failed"] | None,
            QueryParameter(name="state", description="What came of them so far."),
        ] = None,
        after: Annotated[
            str, QueryParameter(pattern=CURSOR_PATTERN, description="`next` of the page before; empty: the newest.")
        ] = "",
        limit: Annotated[int, QueryParameter(ge=1, le=200)] = 50,
    ) -> Response[Deliveries]:
        """List what was sent to a webhook, or is to be, each with its attempts; the newest event first."""
        found = await webhooks.deliveries(caller, webhook_id, state=wanted, after=after, limit=limit)
        return Response(found, headers=_NO_STORE)

    @post(
        "/{webhook_id:str}/deliveries/{event_id:str}/replay",
        access=_EITHER,
        security=BEARER,
        operation_id="ReplayWebhookDelivery",
        status_code=202,
        responses=problems(
            s401=_UNKNOWN_CALLER,
            s403=_NO_ROLE,
            s404="There is no such webhook or delivery, or it is another's.",
            s409=_OFF,
            s503=_AWAY_FOR_CHANGES,
        ),
    )
    async def replay_delivery(
        self,
        caller: NamedDependency[Caller],
        webhooks: NamedDependency[Webhooks],
        webhook_id: FromPath[str],
        event_id: FromPath[str],
    ) -> Response[Replayed]:
        """Send an event again, within some ten seconds, also one that was delivered: its `webhook-id` is the same."""
        return Response(await webhooks.replay(caller, webhook_id, event_id), headers=_NO_STORE)

    @post(
        "/{webhook_id:str}/replay",
        access=_EITHER,
        security=BEARER,
        operation_id="ReplayWebhook",
        operation_class=NewReplayOperation,
        status_code=202,
        responses=problems(
            s400="A field is malformed; `errors` names it.",
            s401=_UNKNOWN_CALLER,
            s403=_NO_ROLE,
            s404=_UNKNOWN,
            s409=_OFF,
            s413="The body is too large.",
            s415="The body is not application/json.",
            s503=_AWAY_FOR_CHANGES,
        ),
    )
    async def replay_webhook(
        self,
        request: Request[Caller, Any, Any],
        caller: NamedDependency[Caller],
        webhooks: NamedDependency[Webhooks],
        webhook_id: FromPath[str],
    ) -> Response[Replayed]:
        """Send again what failed of events from a time on, within some ten seconds, a thousand at a time."""
        replay = await _read(_REPLAY, request)
        if replay.since.year < 1000:
            raise BadRequestError("since", "is before all events")
        return Response(await webhooks.replay_since(caller, webhook_id, replay.since), headers=_NO_STORE)
