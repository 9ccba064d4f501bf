"""Spans of what is sampled. For what is not, `span` is a look at a context variable, and nothing of the SDK runs."""

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar, Token
from types import TracebackType
from typing import TYPE_CHECKING, Self

from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    format_span_id,
    format_trace_id,
    set_span_in_context,
)
from opentelemetry.trace import Tracer as SdkTracer

from orders.settings import Settings
from orders.tracecontext import TRACE, Trace

if TYPE_CHECKING:
    from orders.exporting import Exporting

Attributes = Mapping[str, str | int | Sequence[str]]

_RECORDING: ContextVar["Recording | None"] = ContextVar("recording", default=None)
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_NOT_SAMPLED: AbstractContextManager[None] = nullcontext()


def span(
    name: str, kind: SpanKind = SpanKind.INTERNAL, attributes: Attributes | None = None
) -> "AbstractContextManager[Recording | None]":
    """Have what is done within be a span below the one that is under way; where none is, do nothing.

    An exception that passes through is the span's error, by its type: what it says may be a customer's.
    """
    above = _RECORDING.get()
    return _NOT_SAMPLED if above is None else above.below(name, kind, attributes)


def sampled() -> bool:
    """Return whether a span is under way."""
    return _RECORDING.get() is not None


def traceparent() -> str:
    """Return the place that is under way, for who works for it elsewhere; empty outside of any trace."""
    recording = _RECORDING.get()
    if recording is not None:
        return recording.traceparent
    trace = TRACE.get()
    return trace.traceparent if trace else ""


class Recording:
    """A span under way; or several alike, each in another trace, where work is done for several at once."""

    __slots__ = ("_spans", "_token", "_tracer")

    def __init__(self, tracer: SdkTracer, spans: Sequence[Span]) -> None:
        self._tracer = tracer
        self._spans = spans
        self._token: Token[Recording | None] | None = None

    def below(self, name: str, kind: SpanKind, attributes: Attributes | None) -> "Recording":
        """Return a span below each."""
        return Recording(
            self._tracer,
            [self._tracer.start_span(name, set_span_in_context(each), kind, attributes) for each in self._spans],
        )

    @property
    def traceparent(self) -> str:
        """The place of the span, or of the first."""
        context = self._spans[0].get_span_context()
        return f"00-{format_trace_id(context.trace_id)}-{format_span_id(context.span_id)}-01"

    @contextmanager
    def current(self) -> Iterator[None]:
        """Have what is done within be below it; it goes on afterwards."""
        token = _RECORDING.set(self)
        try:
            yield
        finally:
            _RECORDING.reset(token)

    def note(self, attributes: Attributes) -> None:
        """Add to what is told of it."""
        for each in self._spans:
            each.set_attributes(attributes)

    def note_each(self, attributes: Sequence[Attributes]) -> None:
        """Add to what is told of each, in their order."""
        for each, its in zip(self._spans, attributes, strict=True):
            each.set_attributes(its)

    def rename(self, name: str) -> None:
        """Have it named by what is known only now."""
        for each in self._spans:
            each.update_name(name)

    def fail(self, error_type: str) -> None:
        """Note that it went wrong."""
        self.note({"error.type": error_type})
        for each in self._spans:
            each.set_status(Status(StatusCode.ERROR))

    def end(self, at: int | None = None) -> None:
        """Have it told of: it ended now, or at a time in nanoseconds."""
        for each in self._spans:
            each.end(at)

    def __enter__(self) -> Self:
        self._token = _RECORDING.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if self._token is not None:
            _RECORDING.reset(self._token)
        if kind is not None:
            self.fail(kind.__qualname__)
        self.end()


class Tracer:
    """Makes the first span that this process has of a trace; spans below it are made by `span`."""

    def __init__(self, settings: Settings, service: str) -> None:
        self._settings = settings
        self._traces = settings.traces()
        self._service = service
        self._exporting: Exporting | None = None
        # What begins here is sampled at this ratio; what comes from elsewhere brings the decision along.
        self.ratio = self._traces.ratio if self._traces else 0.0

    def start(self) -> None:
        """Begin; return at once. Without a collector in the settings there are no spans."""
        if self._traces:
            from orders.exporting import Exporting  # noqa: PLC0415  (megabytes, where they serve)

            self._exporting = Exporting(self._traces.endpoint, self._settings.ca_file, self._service)

    async def stop(self) -> None:
        """Send what is left, as far as the collector takes it within a second."""
        if self._exporting:
            await asyncio.to_thread(self._exporting.stop)

    def open(
        self,
        traces: Sequence[Trace],
        name: str,
        kind: SpanKind,
        attributes: Attributes | None = None,
        *,
        started: int | None = None,
    ) -> Recording | None:
        """Return spans at places in traces, be those sampled or not; none where there is no collector.

        They began now, or at a time in nanoseconds.
        """
        exporting = self._exporting
        if exporting is None or not traces:
            return None
        started = started or time.time_ns()
        spans = []
        for trace in traces:
            trace_id = exporting.ids.trace_id = int(trace.trace_id, 16)
            exporting.ids.span_id = int(trace.span_id, 16)
            above = SpanContext(trace_id, int(trace.parent_id or "0", 16), is_remote=True, trace_flags=_SAMPLED)
            context = set_span_in_context(NonRecordingSpan(above))
            spans.append(exporting.tracer.start_span(name, context, kind, attributes, start_time=started))
        return Recording(exporting.tracer, spans)
