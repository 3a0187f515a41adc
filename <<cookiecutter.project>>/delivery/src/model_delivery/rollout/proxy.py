"""The proxy before the services: one port for clients, whatever is released behind it.

Caddy reads on each request where it goes, from the file `route`. Measured traps:

- Loading a configuration drops what waits at the old listener of the shared port (180 loads
  failed 3 requests): nothing is loaded twice.
- A second Caddy would share the port without an error: it is tried before.
- A retried POST needs its body buffered, or the empty retry fails at the next service too.
- A body found too long while sent is retried for seconds: its declared length is judged.
- Passive health with a single service turns one error into ten seconds of outage.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from model_delivery.bundle.launch import end, free_port, processes, spawn
from model_delivery.files import write_atomic
from model_delivery.protocols import UserError

_DRAIN_SECONDS = 5.0


@dataclass(frozen=True)
class Caddy:
    """One Caddy for one environment; `folder` is its home while it runs, and is gone afterwards."""

    folder: Path
    port: int

    @property
    def answers(self) -> Path:
        """The log of what clients were answered, a JSON object a line."""
        return self.folder.with_name("access.log")

    @property
    def logs(self) -> list[Path]:
        """The log and what of it was rolled over, which is some of what was before."""
        return [*self.answers.parent.glob("access-*.log"), self.answers]

    def answered(self, since: float) -> Iterator[dict[str, Any]]:
        """Yield what the logs have after a time, in seconds since 1970."""
        for path in self.logs:
            with suppress(FileNotFoundError), path.open("rb") as stream:  # it may roll over now
                for line in stream if path.stat().st_mtime > since else ():
                    with suppress(ValueError):  # torn, by a machine that went down
                        if (answer := json.loads(line))["ts"] > since:
                            yield answer

    def listens(self) -> bool:
        """Return whether this proxy runs and holds the port."""
        return any(c.status == "LISTEN" and c.laddr.port == self.port for c in self._sockets())

    def check_port(self) -> None:
        """Refuse a port that another program, or another project's proxy, listens on."""
        if not self.listens():
            free_port(self.port)

    def route(
        self, release: str, service: str, challenger: str = "", weight: float = 0, until: float = 0
    ) -> None:
        """Send clients to a service (host:port) from now on, in one step; start if it is down.

        A `weight` below 1 is the share that a challenger gets: of the requests' random ids, those
        below a hexadecimal threshold. It ends at a time, in seconds since 1970, by itself: a
        supervisor may be killed.
        """
        if down := not self.listens():
            free_port(self.port)
            self.stop()
        share = f"{challenger or service} {round(weight * 0x10000):04x} {until:.0f}"
        write_atomic(self.folder / "route", f"{release} {service} {share}")
        if down:
            self._start()

    def drain(self, services: set[str]) -> None:
        """Wait until services answer no request any more, but not for ever."""
        deadline = time.monotonic() + (_DRAIN_SECONDS if services else 0)
        while time.monotonic() < deadline:
            time.sleep(0.2)  # first: a request may be between its route and its service
            used = {f"{c.raddr.ip}:{c.raddr.port}" for c in self._sockets() if c.raddr}
            if not used & services:  # by the configuration, connections that idle end
                return

    def stop(self) -> None:
        """End it, after what was asked is answered; also one that hangs."""
        end(self.folder)

    def _start(self) -> None:
        config = Path(__file__).with_name("caddy.json")
        home, log = str(self.folder.resolve()), self.folder.with_name("proxy.log")
        command = [str(Path(sys.executable).with_name("caddy")), "start", "--config", str(config)]
        env = {"HOME": home, "TMPDIR": home, "PORT": str(self.port)}
        try:
            why = f"code {spawn(command, self.folder, env, log, mode='ab').wait(15)}"
        except (OSError, subprocess.TimeoutExpired) as error:
            why = str(error)
        if why != "code 0":
            self.stop()
            raise UserError(f"the proxy did not start ({why}); see {log}")

    def _sockets(self) -> list[Any]:
        with suppress(psutil.Error):  # it ended meanwhile
            return [c for p in processes(self.folder) for c in p.net_connections("tcp4")]
        return []
