"""Sends spans to a collector, by a thread of its own. Nobody waits for it: while it is away, spans are dropped and counted."""

import logging
import socket
import threading
import time
from collections import deque

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from orders import metrics

_LOG = logging.getLogger(__name__)
_EXPORTED, _FAILED, _DROPPED = (metrics.SPANS.labels(outcome) for outcome in ("exported", "failed", "dropped"))

LINGER_SECONDS = 1.0
EXPORT_SECONDS = 2.0
REST_SECONDS = 5.0  # after a batch that was not taken
FLUSH_SECONDS = 2.0  # for what is left at the end
COMPLAIN_SECONDS = 60.0
MOST_WAITING = 1024
MOST_AT_ONCE = 128  # while they are encoded nothing else runs: some milliseconds
MOST_CHARACTERS = 1000  # of one attribute, of which a statement is the longest


class Ids(RandomIdGenerator):
    """Gives the next span the identifiers that were chosen for it, where some were: answers name them before it is made."""

    trace_id = 0
    span_id = 0

    def generate_trace_id(self) -> int:
        """Return the trace's; only the first span of all has none above it to take it from."""
        return self.trace_id

    def generate_span_id(self) -> int:
        """Return the one that was chosen, once."""
        chosen, self.span_id = self.span_id, 0
        return chosen or super().generate_span_id()


class Exporting(SpanProcessor):
    """A queue of spans that ended, and the thread that empties it."""

    def __init__(self, endpoint: str, ca_file: str, service: str) -> None:
        self._endpoint = endpoint
        self._exporter = OTLPSpanExporter(endpoint, certificate_file=ca_file or None, timeout=EXPORT_SECONDS)
        self._waiting: deque[ReadableSpan] = deque()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._complained_at = -COMPLAIN_SECONDS
        self.ids = Ids()
        provider = TracerProvider(
            sampler=ALWAYS_ON,  # what is not sampled does not come here
            resource=Resource({"service.name": service, "service.instance.id": socket.gethostname()}),
            id_generator=self.ids,
            span_limits=SpanLimits(max_attribute_length=MOST_CHARACTERS),
            shutdown_on_exit=False,
        )
        provider.add_span_processor(self)
        self.tracer = provider.get_tracer("orders")
        # A daemon: a collector that hangs keeps nobody from leaving.
        self._thread = threading.Thread(target=self._run, name="spans", daemon=True)
        self._thread.start()

    def on_end(self, span: ReadableSpan) -> None:
        """Take a span; where too many wait, in place of the oldest."""
        if len(self._waiting) >= MOST_WAITING:
            self._waiting.popleft()
            _DROPPED.inc()
        self._waiting.append(span)
        if not self._wake.is_set():
            self._wake.set()

    def stop(self) -> None:
        """Send what is left, and return after two seconds at the latest."""
        self._stopping.set()
        self._wake.set()
        self._thread.join(FLUSH_SECONDS)

    def _run(self) -> None:
        while self._wake.wait() and not (self._stopping.is_set() and not self._waiting):
            if len(self._waiting) < MOST_AT_ONCE:
                self._stopping.wait(LINGER_SECONDS)
            self._wake.clear()
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(MOST_AT_ONCE, len(self._waiting)))]
                if self._exporter.export(batch) is SpanExportResult.SUCCESS:
                    _EXPORTED.inc(len(batch))
                    continue
                _FAILED.inc(len(batch))
                self._complain()
                if self._stopping.wait(REST_SECONDS):
                    return
            if self._stopping.is_set():
                return

    def _complain(self) -> None:
        if (now := time.monotonic()) - self._complained_at >= COMPLAIN_SECONDS:
            self._complained_at = now
            _LOG.warning("%s takes no spans; they are dropped, and nothing waits for it", self._endpoint)
