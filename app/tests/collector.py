"""A collector of spans as OTLP over HTTPS has them: `collector.py PORT CERTIFICATE KEY` prints each as a line of JSON."""

import json
import ssl
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status


def attributes(found: list[KeyValue]) -> dict[str, object]:
    """Return attributes by name."""
    told: dict[str, object] = {}
    for each in found:
        value = each.value
        if value.WhichOneof("value") == "array_value":
            told[each.key] = [item.string_value for item in value.array_value.values]
        else:
            told[each.key] = getattr(value, value.WhichOneof("value") or "string_value")
    return told


class Handler(BaseHTTPRequestHandler):
    """Takes what exporters send."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Print the spans of one request."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status = 200 if self.path == "/v1/traces" else 404
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans if status == 200 else []:
            service = attributes(list(resource.resource.attributes))["service.name"]
            for scope in resource.scope_spans:
                for span in scope.spans:
                    told = {
                        "service": service,
                        "trace": span.trace_id.hex(),
                        "id": span.span_id.hex(),
                        "parent": span.parent_span_id.hex(),
                        "name": span.name,
                        "kind": Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
                        "start": span.start_time_unix_nano,
                        "end": span.end_time_unix_nano,
                        "failed": span.status.code == Status.STATUS_CODE_ERROR,
                        "attributes": attributes(list(span.attributes)),
                    }
                    sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()
        self.send_response(status)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        """Say nothing else."""


class Server(ThreadingHTTPServer):
    """A server that prints spans and nothing else."""

    def handle_error(self, *_arguments: object) -> None:
        """Say nothing of clients that go away."""


if __name__ == "__main__":
    server = Server(("127.0.0.1", int(sys.argv[1])), Handler)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(sys.argv[2], sys.argv[3])
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.serve_forever()
