"""Two host proxies as the edge sees them, on the loopback: mTLS, and each does what a request's header asks of it.

`X-Test: app1=503 app2=slow` makes app1 answer 503 and app2 wait longer than an attempt at order intake may last; `empty` closes the connection,
`stream` says something at once and again after three seconds, and `late` waits a quarter of a second.
Every other answer is 200. The body is a JSON object that tells what arrived, and how often X-Test-Id arrived until now.
"""

from __future__ import annotations

import collections
import http.server
import json
import ssl
import sys
import threading
import time

PKI = "/etc/freehold/pki"
ARRIVALS: collections.Counter[str] = collections.Counter()


class Handler(http.server.BaseHTTPRequestHandler):
    """Answer as the name of the server's address."""

    protocol_version = "HTTP/1.1"
    name = ""

    def answer(self) -> None:
        """Send what the request asked of this host."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        ARRIVALS[self.headers.get("X-Test-Id", "")] += 1
        wish = dict(part.split("=") for part in self.headers.get("X-Test", "").split()).get(self.name, "")
        if wish == "empty":
            self.close_connection = True
            return
        if wish == "slow":
            time.sleep(1.5)
        if wish == "late":
            time.sleep(0.25)
        headers = {name.lower(): self.headers.get_all(name) for name in self.headers}
        subject = dict(part[0] for part in self.connection.getpeercert()["subject"])
        arrivals = ARRIVALS[self.headers.get("X-Test-Id", "")]
        content = json.dumps(
            {"host": self.name, "headers": headers, "length": len(body), "client": subject, "arrivals": arrivals}
        ).encode()
        if wish == "stream":
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"9\r\n: first\n\n\r\n")
            time.sleep(3)
            self.wfile.write(b"8\r\n: last\n\n\r\n0\r\n\r\n")
            return
        self.send_response(int(wish) if wish.isdigit() else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = answer  # noqa: N815


def main() -> None:
    """Serve for each NAME=ADDRESS of the command line until the process is ended."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=f"{PKI}/ca.crt")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(f"{PKI}/backends.crt", f"{PKI}/backends.key")
    for argument in sys.argv[1:]:
        name, address = argument.split("=")
        server = http.server.ThreadingHTTPServer((address, 8443), type(name, (Handler,), {"name": name}))
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=server.serve_forever).start()


main()
