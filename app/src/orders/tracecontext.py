"""To which trace a request or an order belongs, by the W3C's Trace Context: for answers, log lines and messages, sampled or not."""

import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import msgspec

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_NO_TRACE, _NO_SPAN = "0" * 32, "0" * 16
_SAMPLED = 1


class Trace(msgspec.Struct, frozen=True, gc=False):
    """A place in a trace: the identifier of its own span, that of the span above it, and whether spans are told of."""

    trace_id: str
    span_id: str
    parent_id: str = ""
    sampled: bool = False

    @property
    def traceparent(self) -> str:
        """What is told to those who work for it elsewhere."""
        return f"00-{self.trace_id}-{self.span_id}-0{self.sampled:d}"


TRACE: ContextVar[Trace | None] = ContextVar("trace", default=None)


def below(traceparent: str) -> Trace | None:
    """Return a new place below the one that a header or a message names; none where it names none."""
    found = _TRACEPARENT.fullmatch(traceparent)
    if found is None:
        return None
    version, trace_id, parent_id, flags, more = found.groups()
    # What a later version adds at the end is passed over; this one adds nothing.
    if version == "ff" or (version == "00" and more) or trace_id == _NO_TRACE or parent_id == _NO_SPAN:
        return None
    return Trace(trace_id, _span_id(), parent_id, bool(int(flags, 16) & _SAMPLED))


def begin(ratio: float) -> Trace:
    """Return the first place of a new trace, of which this share is sampled."""
    # Identifiers are to differ, and need not be unguessable: nothing is given for one.
    return Trace(f"{random.getrandbits(128) or 1:032x}", _span_id(), "", ratio > 0 and random.random() < ratio)  # noqa: S311


def _span_id() -> str:
    return f"{random.getrandbits(64) or 1:016x}"


@contextmanager
def at(trace: Trace | None) -> Iterator[None]:
    """Have the log lines of what is done within name this trace."""
    token = TRACE.set(trace)
    try:
        yield
    finally:
        TRACE.reset(token)
