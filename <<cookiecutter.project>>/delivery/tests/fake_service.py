"""A stand-in for a release's service: ready in milliseconds, and bad in the ways a test asks for.

python fake_service.py PORT DIGEST LAUNCH [never-ready|crash|liar]
"""

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    request_queue_size = 128
    digest = launch = fault = ""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.path == "/slow":
            time.sleep(1.5)
        request_id = self.headers.get("x-request-id")
        said = {"digest": self.server.digest, "id": request_id, "bytes": len(body)}
        content = json.dumps(said).encode()
        liar, never = self.server.fault == "liar", self.server.fault == "never-ready"
        self.send_response(503 if never else 200)
        self.send_header("content-length", str(len(content)))
        self.send_header("x-model-digest", "f" * 64 if liar else self.server.digest)
        self.send_header("x-launch", self.server.launch)
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET  # noqa: N815 — the names http.server asks for

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


def main(port: str, digest: str, launch: str, fault: str = "") -> None:
    if fault == "crash":
        sys.exit("cannot load the model")
    server = Server(("127.0.0.1", int(port)), Handler)
    server.digest, server.launch, server.fault = digest, launch, fault
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
