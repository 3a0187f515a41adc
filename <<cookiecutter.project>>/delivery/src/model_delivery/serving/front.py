"""What stands between the network and BentoML: identity on every response, size and type."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from _bentoml_sdk import Service

from model_delivery.contract.request import most_bytes

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

_JSON = b"application/json"


def identified(digest: str, launch: str) -> type[Service[Any]]:
    """Return a BentoML service class whose every response says who answers.

    BentoML places added middleware inside its own, whose time-outs would then be anonymous.
    """
    headers = [(b"x-model-digest", digest.encode()), (b"x-launch", launch.encode())]

    class Identified(Service[Any]):  # type: ignore[misc]  # BentoML is untyped to mypy
        def to_asgi(self, is_main: bool = True) -> App:
            app = super().to_asgi(is_main)

            async def front(scope: Message, receive: Receive, send: Send) -> None:
                async def signed(message: Message) -> None:
                    if message["type"] == "http.response.start":
                        message["headers"] = [*message.get("headers", ()), *headers]
                    await send(message)

                await app(scope, receive, signed)

            return front

    return Identified


class Guard:
    """Refuses bodies that are not JSON or too large, before anything reads them.

    A body is read whole here: one that ends early is a client gone, not an error of ours.
    """

    def __init__(self, app: App, columns: list[str]) -> None:
        self.app = app
        self.most_bytes = most_bytes(columns)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass on what is no body, and whole bodies."""
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        if headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != _JSON:
            return await _refuse(send, 415, "send the rows as `Content-Type: application/json`")
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self.most_bytes:
                return await _refuse(send, 413, f"a body has at most {self.most_bytes:,} bytes")
        whole: Message = {"type": "http.request", "body": body, "more_body": False}
        rest = iter([whole])

        async def replay() -> Message:
            return next(rest, None) or await receive()

        return await self.app(scope, replay, send)


async def _refuse(send: Send, status: int, reason: str) -> None:
    content = json.dumps({"error": reason}).encode()
    headers = [(b"content-type", _JSON), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
