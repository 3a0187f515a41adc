"""The service of a release: checked bytes, strict requests, probabilities or a clear error.

Tuned as measured for BentoML 1.4: `async` and inline scoring, no access log, a short timeout,
no tracing, garbage collection held back. BentoML is imported only to serve.
"""

import gc
import json
import logging
import os
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from model_delivery.contract.request import as_arrays, request_model, to_columns
from model_delivery.contract.settings import LogSettings
from model_delivery.files import read_json, verify
from model_delivery.protocols import Columns, Floats
from model_delivery.watch.log import MODEL_LOG, PredictionLog

LAUNCH, NOOP, RELEASE = "MODEL_LAUNCH", "MODEL_NOOP", "MODEL_RELEASE"
"""Environment variables of a service: the token of its start, whether it is the twin, its name."""
SCORE = "x-score"
"""The header of an answer with its first row's probability, from which a rollout is judged."""
TWIN_MARK = "noop-"
"""What the no-op twin of a release says before its digest: it is never the release."""
STREAM = "--stream"
"""The option of `service.py` with which it scores batches; releases of before do not know it."""
REFUSAL = "this release cannot start"
"""What a service logs before it gives up; its arbiter would try again for ever."""
JSON = "application/json"
Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]


class ModelService:
    """Base of the user's service: `load` once, then `score` what is valid."""

    def load(self, folder: Path) -> None:
        """Read features and model from the release's folder `model`."""
        raise NotImplementedError

    def score(self, columns: Columns) -> Floats:
        """Return the probability of each row, shape (n,)."""
        raise NotImplementedError


class Prediction(BaseModel):
    """The answer: which release gave it, and a probability for each row, in their order."""

    release: str
    probability: list[Annotated[float, Field(ge=0, le=1)]]


def create(cls: type[ModelService], ship: Path) -> Any:
    """Return the BentoML service of a release; UserError where its bytes are not as sealed.

    `MODEL_NOOP=1` in the environment makes the twin instead: the same in everything, but
    `score` answers 0.5 without looking. What a service costs beyond its twin is the model's.
    """
    digest, noop = verify(ship), os.environ.get(NOOP) == "1"
    os.environ.setdefault("OTEL_SDK_DISABLED", "true")  # read when BentoML builds its app
    import bentoml

    service = bentoml.service(
        name=cls.__module__.partition(".")[0],
        workers=1,
        traffic={"timeout": 2.0},  # its timers are never cancelled: long ones feed the collector
        logging={"access": {"enabled": False}},
        tracing={"excluded_urls": ".*"},
    )(_endpoint(twin(cls) if noop else cls, ship, digest))
    service.add_asgi_middleware(Front, identity=f"{TWIN_MARK}{digest}" if noop else digest)
    return service


def _endpoint(served: type[ModelService], ship: Path, digest: str) -> type:
    import bentoml
    from starlette.responses import Response

    request = read_json(ship / "request.json")

    class Endpoint:
        """Scores rows: `POST /predict`."""

        def __init__(self) -> None:
            self.model, self.log = start_model(served, ship, request), _log(digest, request)

        async def predict(self, body: Any, /, ctx: bentoml.Context) -> Any:
            """Return a probability for each row."""
            start = time.perf_counter()
            columns = to_columns(body.rows, request)
            scores = probabilities(self.model, columns, len(body.rows)).tolist()
            if self.log:
                seconds = time.perf_counter() - start
                self.log.add(dict(ctx.request.headers.raw), body.rows, scores, seconds)
            found = Prediction(release=digest[:12], probability=scores).model_dump_json()
            return Response(found, media_type=JSON, headers={SCORE: f"{scores[0]:.6f}"})

        @bentoml.on_shutdown  # type: ignore[untyped-decorator]  # it has no types
        def end(self) -> None:
            if self.log:
                self.log.close()

    # BentoML reads schema and documentation from the annotations, here made of the contract.
    Endpoint.predict.__annotations__ |= {"body": request_model(request), "return": Prediction}
    Endpoint.predict = bentoml.api(Endpoint.predict)  # type: ignore[method-assign]  # as a decorator would
    return Endpoint


def _log(digest: str, request: Mapping[str, Any]) -> PredictionLog | None:
    """Return the log that the environment asks for; its machinery may be newer, and ask more."""
    from prometheus_client import Counter

    if not (given := os.environ.get(MODEL_LOG)):
        return None
    known = {k: v for k, v in json.loads(given).items() if k in LogSettings.model_fields}
    dropped = Counter("predictions_dropped", "Answers that the log could not keep")
    return PredictionLog(LogSettings(**known), digest, request, dropped.inc)


class Front:
    """Signs every answer, and refuses other bodies than JSON: BentoML would read forms too."""

    def __init__(self, app: Any, identity: str) -> None:
        from starlette.responses import JSONResponse

        launch, release = (os.environ.get(name, "none") for name in (LAUNCH, RELEASE))
        signs = {"x-model-digest": identity, "x-launch": launch, "x-release": release}
        self.signature = [(name.encode(), value.encode()) for name, value in signs.items()]
        self.app, said = app, f"send the rows as `Content-Type: {JSON}`"
        self.refusal = JSONResponse({"error": said}, 415)

    async def __call__(self, scope: Message, receive: Any, send: Send) -> None:
        async def signed(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *self.signature]
            await send(message)

        kinds = [value for name, value in scope.get("headers", ()) if name == b"content-type"]
        plain = [kind.partition(b";")[0].strip().lower() for kind in kinds]
        right = scope.get("method") != "POST" or plain == [JSON.encode()]
        await (self.app if right else self.refusal)(scope, receive, signed)


def start_model(cls: type[ModelService], ship: Path, request: Mapping[str, Any]) -> ModelService:
    """Load the model and score the example row, so that ready means able to score."""
    logging.getLogger("bentoml._internal.server.http_app").addFilter(_is_our_fault)
    example = {name: spec["example"] for name, spec in request.items()}
    rows = request_model(request).model_validate_json(json.dumps({"rows": [example]})).rows
    try:
        model = cls()
        model.load(ship / "model")
        probabilities(model, to_columns(rows, request), len(rows))
    except Exception as error:
        logging.getLogger("bentoml.model_delivery").error("%s: %r", REFUSAL, error)
        raise
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    return model


def probabilities(model: ModelService, columns: Columns, rows: int) -> Floats:
    """Return the probability of each row, shape (rows,); a RuntimeError where there is none."""
    try:
        scores = np.asarray(model.score(columns), np.float64)
        if scores.shape != (rows,) or not ((scores >= 0) & (scores <= 1)).all():
            raise ValueError(f"no probabilities of {rows} rows: {scores.tolist()!r:.200}")
    except Exception as error:  # pydantic's own would be taken for the caller's mistake
        raise RuntimeError(f"the model failed on {rows} rows: {error!r}") from error
    return scores


def twin(cls: type[ModelService]) -> type[ModelService]:
    """Return the same service without its model's work."""

    class Twin(cls):  # type: ignore[misc, valid-type]  # a base that only the run knows
        def score(self, columns: Columns) -> Floats:
            return np.full(len(next(iter(columns.values()))), 0.5)

    return Twin


def _is_our_fault(record: logging.LogRecord) -> bool:
    """Leave the mistakes of callers out of BentoML's log."""
    error = record.exc_info[1] if record.exc_info else None
    refused = getattr(error, "error_code", 500) < 500  # BentoML's own
    gone = type(error).__name__ == "ClientDisconnect"  # Starlette's; only BentoML imports it
    return not (refused or gone or isinstance(error, ValidationError))


def score_standard_input(cls: type[ModelService], ship: Path) -> None:
    """Score without a server: `python service.py < columns.json`, or batches with `--stream`."""
    verify(ship)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no score
    model, request = cls(), read_json(ship / "request.json")
    model.load(ship / "model")
    if STREAM in sys.argv:
        return _score_batches(model, sys.stdin.buffer, answers)
    given = json.load(sys.stdin)
    scores = model.score(as_arrays((given[name] for name in request), request))
    answers.write(json.dumps(np.asarray(scores, np.float64).tolist()).encode())
    answers.close()


def _score_batches(model: ModelService, given: BinaryIO, answers: BinaryIO) -> None:
    """Score batches until there is none; nothing but numpy is needed.

    A batch is a line of JSON, `{"rows": n, "columns": [[name, dtype, words], ...]}`, then the n raw
    values of each column. `words` is null, or a category's dictionary, of which the values are
    places; -1 is a missing one. The answer is n raw float64.
    """
    while line := given.readline():
        head, columns = json.loads(line), dict[str, Any]()
        for name, dtype, words in head["columns"]:
            values = np.frombuffer(given.read(head["rows"] * np.dtype(dtype).itemsize), dtype)
            columns[name] = values if words is None else np.array([*words, None], "O")[values]
        answers.write(probabilities(model, columns, head["rows"]).tobytes())
        answers.flush()
