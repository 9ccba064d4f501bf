"""Takes what Alertmanager sends, by HTTP and by SMTP, and tells whoever asks: GET answers with all that came, as JSON.

Arguments: port of HTTP, port of SMTP, certificate, key, and the name and password without which no mail is taken.
"""

from __future__ import annotations

import base64
import email
import email.policy
import json
import ssl
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import StreamRequestHandler, ThreadingTCPServer
from threading import Thread
from typing import Any

CAME: list[dict[str, Any]] = []


class Posts(BaseHTTPRequestHandler):
    """Webhooks and chats, told apart by their path."""

    def do_POST(self) -> None:
        """Keep what was posted, and say what a chat says."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        CAME.append({"to": self.path.strip("/"), "body": body})
        self._answer(b"ok", "text/plain")

    def do_GET(self) -> None:
        """Tell all that came."""
        self._answer(json.dumps(CAME).encode(), "application/json")

    def _answer(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Mails(StreamRequestHandler):
    """As much of SMTP (RFC 5321) as a client needs that will have STARTTLS (3207) and logs in with AUTH PLAIN (4954)."""

    context: ssl.SSLContext
    login: tuple[str, str]

    def handle(self) -> None:
        """Answer each command; a mail is taken over TLS and from whoever logged in."""
        secure = known = False
        self._say("220 localhost ESMTP")
        while line := self.rfile.readline().decode().strip():
            verb, _, rest = line.partition(" ")
            match verb.upper():
                case "EHLO":
                    self._say("250-localhost", "250 AUTH PLAIN" if secure else "250 STARTTLS")
                case "STARTTLS":
                    self._say("220 go ahead")
                    self.connection = self.context.wrap_socket(self.connection, server_side=True)
                    self.rfile = self.connection.makefile("rb")
                    secure = True
                case "AUTH":
                    given = base64.b64decode(rest.partition(" ")[2]).decode().split("\0")[1:]
                    known = secure and tuple(given) == self.login
                    self._say("235 welcome" if known else "535 no")
                case "MAIL" | "RCPT" if known:
                    self._say("250 ok")
                case "DATA" if known:
                    self._say("354 go on")
                    self._take()
                    self._say("250 taken")
                case "QUIT":
                    self._say("221 bye")
                    return
                case _:
                    self._say("530 not before STARTTLS and AUTH")

    def _say(self, *lines: str) -> None:
        self.connection.sendall("".join(f"{line}\r\n" for line in lines).encode())

    def _take(self) -> None:
        data = b"".join(iter(self.rfile.readline, b".\r\n"))
        mail = email.message_from_bytes(data, policy=email.policy.default)
        text = mail.get_body(("plain",))
        CAME.append(
            {
                "to": mail["To"],
                "from": mail["From"],
                "subject": mail["Subject"],
                "kinds": [part.get_content_type() for part in mail.walk() if not part.is_multipart()],
                "text": "\n".join(text.get_content().splitlines()) if text else "",
            }
        )


def main(http: str, smtp: str, certificate: str, key: str, *login: str) -> None:
    """Serve both until the end."""
    user, password = login
    Mails.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    Mails.context.load_cert_chain(certificate, key)
    Mails.login = (user, password)
    Thread(target=ThreadingTCPServer(("127.0.0.1", int(smtp)), Mails).serve_forever, daemon=True).start()
    ThreadingHTTPServer(("127.0.0.1", int(http)), Posts).serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
