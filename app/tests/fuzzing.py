"""Hooks of Schemathesis, which it loads by itself: what a client knows of the service beside its document."""

import re
from functools import partial
from typing import Any

import requests.sessions
import schemathesis
from requests.adapters import HTTPAdapter
from urllib3 import Retry

# What a stalled machine makes of a request, a 503 with Retry-After, is sent again, as the edge and every client does. One that
# stays a 503 is found.
AGAIN = Retry(
    total=None,
    connect=0,
    read=0,
    other=0,
    status=5,
    status_forcelist=[503],
    allowed_methods=None,
    raise_on_status=False,
)
# Why a request is refused that fits the document, since no schema can say it.
BEYOND_SCHEMAS = re.compile(
    r"is in the order already"  # each product once
    r"|is not to be sent with If-Match"
    r"|Expected `int`, got `float`"  # 2.0 is an integer to JSON Schema
    r"|is missing, as is customer"  # one of two parameters
    r"|is not the `next` of a page"
    r"|is not of a log-in that began in this browser"
    r"|has a name that (does not resolve|is not resolved in time)"  # there is no Internet where the tests are
    r"|leads to \S+, which is no address of the Internet"
    r"|has no host's name of|has a port that is not one of|is no address of the web|has a user, a password or a fragment"
)
# HTTP lets every request have more headers.
MORE_HEADERS = "in header - object with unexpected properties"

requests.sessions.HTTPAdapter = partial(HTTPAdapter, max_retries=AGAIN)


def filter_failure(_context: object, failure: Any, case: Any, response: Any) -> bool:  # noqa: ANN401
    """Return whether a finding is one."""
    if type(failure).__name__ == "RejectedPositiveData":
        return not (BEYOND_SCHEMAS.search(response.text) or breaks_a_pattern(case))
    return not (type(failure).__name__ == "AcceptedNegativeData" and MORE_HEADERS in failure.message)


def breaks_a_pattern(case: Any) -> bool:  # noqa: ANN401
    """Return whether a request has a text that its parameter's pattern forbids: what is made for a pattern need not fit it."""
    sent = {"query": case.query or {}, "header": case.headers or {}}
    for parameter in case.operation.definition.raw.get("parameters", ()):
        values = {name.lower(): value for name, value in sent.get(parameter["in"], {}).items()}
        value, pattern = values.get(parameter["name"].lower()), parameter["schema"].get("pattern")
        if pattern and value is not None and not re.search(pattern, str(value)):
            return True
    return False


schemathesis.hook(filter_failure)
