"""What the interface of webhooks takes and gives, and what is sent to an endpoint."""

from datetime import datetime
from typing import Annotated, Literal, NamedTuple
from uuid import UUID

import msgspec

MOST_URL, MOST_DESCRIPTION = 2048, 200
URL_PATTERN = r"^https?://[\x21-\x7e]+$(?!\n)"
TEXT_PATTERN = r"^[^\x00-\x1f\x7f]*$(?!\n)"
CURSOR_PATTERN = r"^([A-Za-z0-9_-]{24})?$(?!\n)"
SIGNATURES_SECONDS = 86400  # for which a secret that was replaced signs too, unless it is said otherwise
MOST_SIGNATURES_SECONDS = 7 * 86400

EventType = Literal["order.settled", "order.refused", "order.shipped", "order.delivered", "order.cancelled"]
TYPES: tuple[EventType, ...] = (
    "order.settled",
    "order.refused",
    "order.shipped",
    "order.delivered",
    "order.cancelled",
)
Why = Literal["owner", "failing", "gone"]

Url = Annotated[str, msgspec.Meta(pattern=URL_PATTERN, max_length=MOST_URL)]
Description = Annotated[str, msgspec.Meta(pattern=TEXT_PATTERN, max_length=MOST_DESCRIPTION)]
Types = Annotated[list[EventType], msgspec.Meta(max_length=len(TYPES), description="Of which events; empty: of all.")]


class NewWebhook(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an endpoint is to be."""

    url: Url
    types: Types = []
    description: Description = ""


class WebhookChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to be different of an endpoint."""

    url: Url | msgspec.UnsetType = msgspec.UNSET
    types: Types | msgspec.UnsetType = msgspec.UNSET
    description: Description | msgspec.UnsetType = msgspec.UNSET
    enabled: bool | msgspec.UnsetType = msgspec.UNSET


class NewReplay(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which deliveries are to be tried again."""

    since: Annotated[datetime, msgspec.Meta(tz=True, description="Those that failed of events from then on.")]


class Webhook(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """An endpoint, and how it is doing."""

    id: UUID
    url: str
    types: Types
    description: str
    enabled: bool
    created_at: datetime
    failing_since: Annotated[
        datetime | None,
        msgspec.Meta(description="The first failure after the last success; missing: it does not fail."),
    ] = None
    disabled_at: datetime | None = None
    disabled_because: Annotated[
        Why | None,
        msgspec.Meta(description="owner: so asked for; failing: nothing but failure for days; gone: it answered 410."),
    ] = None
    former_secret_until: Annotated[
        datetime | None, msgspec.Meta(description="Until then the secret before this one signs too.")
    ] = None


class CreatedWebhook(Webhook, frozen=True, omit_defaults=True, kw_only=True):
    """An endpoint, with its secret, which is told this once."""

    secret: str


class Webhooks(msgspec.Struct, frozen=True):
    """All endpoints of one's own."""

    webhooks: list[Webhook]


class Secret(msgspec.Struct, frozen=True):
    """A new secret, told this once, and until when the one before it signs too."""

    secret: str
    former_secret_until: datetime


class Attempt(msgspec.Struct, frozen=True, omit_defaults=True):
    """What came of sending an event: the status of the answer, or why there is none; and how many seconds it asks to be left alone."""

    at: datetime
    seconds: float
    status: int | None = None
    error: str = ""
    retry_after: int | None = None


class Delivery(msgspec.Struct, frozen=True, omit_defaults=True):
    """An event for an endpoint; `attempts` are the last fifty, the newest last."""

    event_id: str
    type: str
    occurred_at: datetime
    state: Literal["pending", "delivered", "failed"]
    attempts: list[Attempt]
    next_at: datetime | None = None


class Deliveries(msgspec.Struct, frozen=True, omit_defaults=True):
    """Deliveries of an endpoint, the newest event first; `next` is where the next page begins, and missing on the last."""

    deliveries: list[Delivery]
    next: str | None = None


class Replayed(msgspec.Struct, frozen=True):
    """How many deliveries will be tried again, and whether there are more that failed: then ask again."""

    deliveries: int
    more: bool


class Payload(msgspec.Struct, frozen=True):
    """The body that an endpoint gets."""

    type: str
    timestamp: datetime
    data: msgspec.Raw


class Due(NamedTuple):
    """A delivery that is to be made now, and what of its endpoint is needed for that."""

    event_id: int
    occurred_at: datetime
    body: str
    step: int
    url: str
    secret: bytes
    former_secret: bytes | None


class Happened(NamedTuple):
    """An event as endpoints are to get it."""

    event_id: int
    occurred_at: datetime
    type: str
    customer_id: str
    body: str
