"""The proxy before the services: one port for clients, whatever is released behind it.

Caddy, driven through its admin API on a unix socket in its own folder, so that no other Caddy
can be taken for it. Measured traps that shape its configuration:

- A retried POST needs its body buffered, or the empty retry fails at the next service too.
- A body found too long while it is sent counts as a failure and is retried for seconds: bodies
  are refused by their declared length, and an undeclared length is refused.
- Passive health with a single service turns one error into ten seconds of outage.
- Caddy shares ports (SO_REUSEPORT): a second one on a port starts without an error and takes
  half of the requests. So the port is tried before.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_delivery.errors import UserError
from model_delivery.files import write_atomic, write_json
from model_delivery.rollout.process import Process, last, recorded, recording

TOKEN_PATH = "/-/proxy"  # noqa: S105 — a path
BODY_LIMIT = 1_000_000
"""Bytes of a request's body, exclusive; a power of ten because a pattern checks it."""
_READY_SECONDS = 10.0
_UNREACHABLE = (OSError, http.client.HTTPException)


@dataclass(frozen=True)
class Caddy:
    """One Caddy for one environment; everything about it lies in `folder`.

    A rollout uses `check_port`, `route`, `stats` and `stop` and knows nothing of Caddy.
    """

    folder: Path
    port: int

    def process(self) -> Process | None:
        """Return the proxy's process while it lives."""
        return recorded(self.folder)

    def answers(self) -> bool:
        """Return whether it is this proxy that answers on the port."""
        return bool(self._token()) and self._greeting() == self._token()

    def check_port(self) -> None:
        """Refuse a port that another program, or another project's proxy, listens on."""
        if self.answers():
            return
        with contextlib.closing(socket.socket()) as probe:
            taken = probe.connect_ex(("127.0.0.1", self.port)) == 0
        if taken:
            owner = "the proxy of another project" if self._greeting() else "another program"
            raise UserError(
                f"port {self.port} is in use by {owner}; nothing was changed. Stop it, or set "
                "another `port` in config/delivery.yaml"
            )

    def route(self, release: str, service: int) -> None:
        """Send clients to the service on a port from now on, in one step; start if it is down."""
        self.check_port()
        if self.process() is not None:
            with contextlib.suppress(*_UNREACHABLE):
                self._admin("POST", "/load", self._configuration(release, service))
                if self.answers():
                    return
        self.stop()
        self._start(release, service)

    def stats(self) -> Mapping[int, int]:
        """Return how many requests each service, by port, is answering now."""
        upstreams = json.loads(self._admin("GET", "/reverse_proxy/upstreams"))
        return {int(u["address"].rpartition(":")[2]): int(u["num_requests"]) for u in upstreams}

    def stop(self) -> None:
        """End it, after what was asked is answered; also one that hangs."""
        process = last(self.folder)
        if process is not None:
            process.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, release: str, service: int) -> None:
        binary = shutil.which("caddy", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        if binary is None:
            raise UserError("caddy is not installed; run `uv sync`")
        write_atomic(self.folder / "token", secrets.token_hex(16))
        write_json(self.folder / "config.json", self._configuration(release, service))
        log = self.folder.with_name("proxy.log")
        with log.open("ab") as output:
            child = subprocess.Popen(
                [*recording(self.folder), binary, "run", "--config", "config.json"],
                cwd=self.folder,
                env={"HOME": str(self.folder)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        deadline = time.monotonic() + _READY_SECONDS
        while not self.answers():
            if child.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise UserError(f"the proxy did not start; see {log}")
            time.sleep(0.02)

    def _token(self) -> str:
        path = self.folder / "token"
        return path.read_text() if path.exists() else ""

    def _greeting(self) -> str | None:
        """Return the token of whatever proxy of our kind answers on the port."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        with contextlib.closing(connection), contextlib.suppress(*_UNREACHABLE):
            connection.request("GET", TOKEN_PATH)
            answer = connection.getresponse()
            if answer.status == 200 and answer.getheader("X-Release"):
                return answer.read(100).decode(errors="replace")
        return None

    def _admin(self, method: str, path: str, body: dict[str, Any] | None = None) -> bytes:
        """Ask the admin API. The socket's full path may be longer than the system allows."""
        connection = http.client.HTTPConnection("localhost")
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as stream:
            stream.settimeout(5)
            with contextlib.chdir(self.folder):
                stream.connect("admin.sock")
            connection.sock = stream
            headers = {"Content-Type": "application/json"}
            connection.request(method, path, json.dumps(body) if body else None, headers)
            answer = connection.getresponse()
            content = answer.read()
        if answer.status != 200:
            raise OSError(f"the proxy refused {method} {path}: {content[:300]!r}")
        return content

    def _configuration(self, release: str, service: int) -> dict[str, Any]:
        """Return Caddy's whole configuration.

        Every answer, errors included, names the release and carries the request's id, which is
        the same on each retry and which the service sees too.
        """
        request_id = {"X-Request-Id": ["{http.request.uuid}"]}
        stamp = {
            "handler": "headers",
            "request": {"set": request_id},
            "response": {"set": request_id | {"X-Release": [release]}},
        }
        too_long = {"Content-Length": {"pattern": "^0*[1-9][0-9]{6,}$"}}
        limit = f"a body has at most {BODY_LIMIT - 1} bytes\n"
        server = {
            "listen": [f"127.0.0.1:{self.port}"],
            "automatic_https": {"disable": True},
            "read_header_timeout": "10s",
            "read_timeout": "30s",
            "routes": [
                {"handle": [stamp]},
                _answer({"path": [TOKEN_PATH]}, 200, self._token()),
                _answer({"header_regexp": too_long}, 413, limit),
                _answer({"header": {"Transfer-Encoding": ["*"]}}, 411, "say the body's length\n"),
                {"handle": [_reverse_proxy(service)]},
            ],
        }
        return {
            "admin": {"listen": "unix/admin.sock|0600", "config": {"persist": False}},
            "logging": {"logs": {"default": {"level": "ERROR"}}},
            "apps": {"http": {"grace_period": "10s", "servers": {"edge": server}}},
        }


def _answer(match: dict[str, Any], status: int, body: str) -> dict[str, Any]:
    handler = {"handler": "static_response", "status_code": status, "body": body}
    return {"match": [match], "handle": [handler], "terminal": True}


def _reverse_proxy(service: int) -> dict[str, Any]:
    retries = {"retries": 2, "try_duration": "3s", "try_interval": "20ms"}
    return {
        "handler": "reverse_proxy",
        "upstreams": [{"dial": f"127.0.0.1:{service}"}],
        "load_balancing": retries | {"retry_match": [{"method": ["POST"]}]},
        "request_buffers": BODY_LIMIT,
    }
