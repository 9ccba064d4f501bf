"""What a request's body holds."""

from typing import TypeVar

import msgspec

from orders.errors import BadRequestError, MediaTypeError

T = TypeVar("T")


def parse(decoder: msgspec.json.Decoder[T], content_type: str, body: bytes) -> T:
    """Return what a JSON body holds.

    Raises:
        MediaTypeError: the body is not declared as JSON.
        BadRequestError: naming the field that is wrong.
    """
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise MediaTypeError("The body is to be application/json.")
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        detail, _, path = str(error).partition(" - at `$")
        raise BadRequestError(path.strip("`.") or "body", detail) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequestError("body", f"not JSON: {error}") from error
