"""Entity tags (RFC 9110): which state of a thing a client has, and which it means to change."""

import re
from typing import NamedTuple

from orders.errors import BadRequestError, UnconditionalError

# Part of each tag, and raised whenever the JSON of what has one changes: replicas of two versions of this service may answer.
SHAPE = 1

_TAG = re.compile(r'(W/)?"([\x21\x23-\x7e\x80-\xff]*)"')
_LIST = re.compile(rf"[ \t,]*{_TAG.pattern}([ \t]*,[ \t,]*{_TAG.pattern})*[ \t,]*")
_OURS = re.compile(r"[0-9]{1,4}\.([0-9]{1,18})")


class Condition(NamedTuple):
    """What must hold for a change: that the thing is not there yet, or that it has one of these versions, none: any."""

    absent: bool
    versions: frozenset[int] | None = None


def tag(version: int) -> str:
    """Return the strong tag of a thing's version."""
    return f'"{SHAPE}.{version}"'


def matches(if_none_match: bytes, etag: bytes) -> bool:
    """Return whether a client has what a tag stands for, by its If-None-Match."""
    if if_none_match == etag:
        return True
    tags = (item.strip().removeprefix(b"W/") for item in if_none_match.split(b","))
    return any(item in {etag, b"*"} for item in tags)


def condition(if_match: str | None, if_none_match: str | None) -> Condition:
    """Return the condition of a change.

    Raises:
        UnconditionalError: there is none.
        BadRequestError: it is malformed, or there are two.
    """
    if if_match is None and if_none_match is None:
        raise UnconditionalError(
            'Send If-None-Match: * to create what is not there, or If-Match: "..." to change what is.'
        )
    if if_match is None:
        if if_none_match != "*":
            raise BadRequestError("If-None-Match", "has a meaning for a change only as *")
        return Condition(absent=True)
    if if_none_match is not None:
        raise BadRequestError("If-None-Match", "is not to be sent with If-Match")
    if if_match == "*":
        return Condition(absent=False)
    if not _LIST.fullmatch(if_match):
        raise BadRequestError("If-Match", 'is neither * nor a list of entity tags like "1.7"')
    # By the strong comparison, as the RFC has it: a weak tag is never a match.
    ours = (_OURS.fullmatch(opaque) for weak, opaque in _TAG.findall(if_match) if not weak)
    return Condition(absent=False, versions=frozenset(int(found[1]) for found in ours if found))
