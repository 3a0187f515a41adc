"""The proxy before the services: one port for clients, whatever is released behind it.

Caddy, driven through its admin API on a unix socket in its own folder, so that no other Caddy
can be taken for it. Measured traps that shape `caddy.json`:

- A retried POST needs its body buffered, or the empty retry fails at the next service too.
- A body found too long while it is sent counts as a failure and is retried for seconds: bodies
  are refused by their declared length, and an undeclared length is refused.
- Passive health with a single service turns one error into ten seconds of outage.
- Caddy shares ports (SO_REUSEPORT): a second one on a port starts without an error and takes
  half of the requests. So the port is tried before.
"""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
import sys
import time
from contextlib import chdir, closing, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from model_delivery.errors import UserError
from model_delivery.files import write_atomic
from model_delivery.rollout.processes import end, processes

_UNREACHABLE = (OSError, http.client.HTTPException)
_DRAIN_SECONDS = 5.0


@dataclass(frozen=True)
class Caddy:
    """One Caddy for one environment; everything about it lies in `folder`."""

    folder: Path
    port: int

    def listens(self) -> bool:
        """Return whether this proxy runs and holds the port."""
        with suppress(psutil.Error):
            held = [c for p in processes(self.folder) for c in p.net_connections("tcp4")]
            return any(c.status == "LISTEN" and c.laddr.port == self.port for c in held)
        return False

    def check_port(self) -> None:
        """Refuse a port that another program, or another project's proxy, listens on."""
        with closing(socket.socket()) as probe:
            taken = probe.connect_ex(("127.0.0.1", self.port)) == 0
        if taken and not self.listens():
            raise UserError(
                f"port {self.port} is in use by another program; nothing was changed. Stop it, or "
                "set another `port` in config/delivery.yaml"
            )

    def route(self, release: str, service: str) -> None:
        """Send clients to a service (host:port) from now on, in one step; start if it is down."""
        text = Path(__file__).with_name("caddy.json").read_text()
        for name, value in (("PORT", str(self.port)), ("RELEASE", release), ("SERVICE", service)):
            text = text.replace(name, value)
        self.check_port()
        with suppress(*_UNREACHABLE):
            self._admin("POST", "/load", text)
            return
        self.stop()
        self._start(text)

    def drain(self, service: str) -> None:
        """Wait until no other service is answering a request any more, but not for ever."""
        deadline = time.monotonic() + _DRAIN_SECONDS
        with suppress(*_UNREACHABLE):
            while time.monotonic() < deadline:
                time.sleep(0.2)  # first: a request may be between the old routing and its service
                upstreams = json.loads(self._admin("GET", "/reverse_proxy/upstreams"))
                if not any(u["num_requests"] for u in upstreams if u["address"] != service):
                    return

    def stop(self) -> None:
        """End it, after what was asked is answered; also one that hangs."""
        end(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, configuration: str) -> None:
        write_atomic(self.folder / "config.json", configuration)
        home, log = str(self.folder.resolve()), self.folder.with_name("proxy.log")
        try:
            with log.open("ab") as output:
                subprocess.run(
                    [Path(sys.executable).with_name("caddy"), "start", "--config", "config.json"],
                    cwd=home,
                    env={"HOME": home, "TMPDIR": home},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    timeout=15,
                    check=True,
                )
        except (OSError, subprocess.SubprocessError) as error:
            self.stop()
            raise UserError(f"the proxy did not start ({error}); see {log}") from error

    def _admin(self, method: str, path: str, body: str | None = None) -> bytes:
        """Ask the admin API. The socket's full path may be longer than the system allows."""
        connection = http.client.HTTPConnection("localhost")
        with closing(socket.socket(socket.AF_UNIX)) as connection.sock:
            connection.sock.settimeout(5)
            with chdir(self.folder):
                connection.sock.connect("admin.sock")
            connection.request(method, path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            content = answer.read()
        if answer.status != 200:
            raise OSError(f"the proxy refused {method} {path}: {content[:300]!r}")
        return content
