"""What a client can see of this service's state: that all is well, or what is not."""

import msgspec

MEDIA_TYPE = "application/problem+json"


class Health(msgspec.Struct, frozen=True):
    """That all is well."""

    status: str = "ok"


class FieldError(msgspec.Struct, frozen=True):
    """What is wrong with one field or header, by its name as the client wrote it."""

    field: str
    detail: str


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error as RFC 9457 has it."""

    status: int
    title: str
    detail: str = ""
    errors: list[FieldError] = []
    request_id: str = ""
    trace_id: str = ""


class NotFoundError(Exception):
    """The thing asked for does not exist."""


class BadRequestError(Exception):
    """The request is malformed in one field."""

    def __init__(self, field: str, detail: str) -> None:
        super().__init__(f"{field}: {detail}")
        self.field = field
        self.detail = detail


class MediaTypeError(Exception):
    """The body is not declared as JSON."""


class KeyReusedError(Exception):
    """The Idempotency-Key was used with another body."""


class TransitionError(Exception):
    """An order does not go from the state that it has to the one that is asked for."""


class StockError(Exception):
    """There would be fewer pieces than none, or more than can be kept."""


class WebhookError(Exception):
    """A webhook cannot be what it is to be, as webhooks are now."""


class UnconditionalError(Exception):
    """A change does not say what it changes."""


class OutdatedError(Exception):
    """What a change is meant to change is there no longer, or what it is to make is there already."""


class UnauthorizedError(Exception):
    """Who asks has no token, or none that counts, for a reason that the client may read."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


class SessionEndedError(Exception):
    """The session of a browser's cookie is there no longer."""


class ForbiddenError(Exception):
    """Who asks is known, and may not do this."""


class CrossSiteError(Exception):
    """A browser sends a session's cookie with a change that no page of ours asked for."""


class UnavailableError(Exception):
    """What is needed for the answer is away for the moment."""


class CommandError(Exception):
    """A command of an operator's cannot do what it is to; the message is one line, for the operator."""
