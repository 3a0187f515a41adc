"""The gate `api`: valid rows get training's scores, wrong values are refused by name.

That any mistake in a request is refused, and that the OpenAPI document is the contract's, is the
machinery's doing, the same for every candidate: its tests send those requests.
"""

import json
from collections.abc import Iterable, Iterator, Sequence

import httpx

from model_delivery.bundle.candidate import Candidate
from model_delivery.bundle.launch import Running, start
from model_delivery.contract.request import MOST_ROWS, JsonRow, columns_of, draw_rows
from model_delivery.project import Project
from model_delivery.protocols import Floats, user_module
from model_delivery.report.verdict import Check, Verdict, fixed

VALID_ROWS, UNKNOWN = 200, "no_such_column"


def check_api(project: Project, candidate: Candidate) -> Verdict:
    """Send rows drawn from the data contract, right and wrong, to a candidate's service."""
    contract, folder = project.contract, candidate.ship / "model"
    rows = draw_rows(contract, VALID_ROWS, seed=0)
    features = user_module("features").Features.load(folder)  # training's own code, no service
    model = user_module("model").Model.load(folder)
    scores = model.predict(features.transform(columns_of(rows, contract)))
    with start(project, candidate.ship, project.work / "logs" / "api.log") as service:
        checks = judge_service(service, contract.inputs, rows, scores)
    return Verdict(gate="api", checks=checks)


def judge_service(
    service: Running, names: Iterable[str], rows: Sequence[JsonRow], scores: Floats
) -> list[Check]:
    """Judge a running service by its answers; `scores`, shape (n,), are those of training.

    `names` are the columns of a request.
    """
    answers, checks = list[httpx.Response](), list[Check]()
    client = httpx.Client(base_url=service.url, timeout=10, trust_env=False)
    client.event_hooks = {"response": [answers.append]}
    try:
        with client:
            checks += _right(client, service.digest[:12], rows, scores)
            checks.append(_refusals(client, [*names, UNKNOWN], rows[0]))
    except (httpx.HTTPError, ValueError) as error:  # none, or one that is no JSON
        said = f"the service does not answer ({type(error).__name__}: {error})"
        checks.append(fixed("answered", False, said))
    own = {"x-model-digest": service.digest, "x-launch": service.launch}
    slips = [
        f"{answer.url} came from {answer.headers.get('x-model-digest')}"
        for answer in answers
        if not own.items() <= answer.headers.items()
    ]
    what = "responses name the candidate's digest and this start"
    return [*checks, _counted("identity", len(answers), slips, what)]


def _right(
    client: httpx.Client, release: str, rows: Sequence[JsonRow], scores: Floats
) -> Iterator[Check]:
    """Judge the answers to valid rows: one by one, then many together."""
    failed, differ = list[str](), list[str]()
    parts = [slice(at, at + 1) for at in range(len(rows))] + [slice(0, MOST_ROWS)]
    for part in parts:
        answer = client.post("/predict", json={"rows": rows[part]})
        wanted = {"release": release, "probability": scores[part].tolist()}
        asked = f"{len(rows[part])} rows from {json.dumps(rows[part.start])}"
        told = f"{asked} -> {answer.status_code} {answer.text:.200}"
        if answer.status_code != 200:
            failed.append(told)
        elif answer.json() != wanted:
            differ.append(f"{told}, in training {json.dumps(wanted):.200}")
    yield _counted("valid rows", len(parts), failed, "valid requests were answered")
    what = "answers hold exactly the scores of training's own code, bit for bit"
    yield _counted("equal scores", len(parts) - len(failed), differ, what)


def _refusals(client: httpx.Client, names: Sequence[str], row: JsonRow) -> Check:
    """Judge the answers to rows with a list, which no column allows, in one field after another."""
    slips = []
    for name in names:
        answer = client.post("/predict", json={"rows": [row | {name: []}]})
        if not 400 <= answer.status_code < 500 or name not in answer.text:
            told = f"{answer.status_code} {answer.text:.200}"
            slips.append(f"a list in `{name}` -> {told} (expected 4xx naming it)")
    return _counted("wrong values", len(names), slips, "wrong values were refused by name")


def _counted(name: str, total: int, slips: Sequence[str], what: str) -> Check:
    """Judge things of which there must be some, and none may slip."""
    good, first = total - len(slips), f"; first: {slips[0]}" if slips else ""
    return fixed(name, not slips and total > 0, f"{good:,} of {total:,} {what}{first}", good)
