"""What this machine, this project or its side on GitHub lacks, and what mends it."""

import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple, get_args

from model_delivery.bundle.candidate import git
from model_delivery.bundle.launch import run
from model_delivery.contract.settings import EnvironmentName
from model_delivery.files import write_atomic
from model_delivery.project import Project
from model_delivery.protocols import UserError, check_variables, needed_variables, user_module
from model_delivery.rollout.target import Target

HERE: Final = "repos/{owner}/{repo}"  # gh fills in the names, from the remote `origin`
RULESETS: Final = ".github/rulesets.json"
OWNERS: Final = ("actions/", "astral-sh/", "docker/", "marocchino/", "ossf/")  # of used actions


class Finding(NamedTuple):
    """Something looked at; if `gh` can mend it, the call, what that reads, and what prints this."""

    subject: str
    ok: bool
    sentence: str
    call: tuple[str, ...] = ()
    given: str = ""
    source: str = ""

    def __str__(self) -> str:
        return self.source + shlex.join(["gh", *self.call])


def diagnose(project: Project) -> list[Finding]:
    """Look at everything a delivery needs here, and go on after a finding."""
    target, names = Target(project, "production"), ("sources", "features", "model", "service")
    supported = (3, 11) <= sys.version_info[:2] < (3, 14)
    uv, commit = shutil.which("uv") or "", git(project, "rev-parse", "--short", "HEAD")
    free = shutil.disk_usage(project.root).free // 10**9
    more = f"{free} GB free, 3 needed; delete old candidates in .ml/candidates"
    start = "no commit; run `git init && git add . && git commit -m Start`"
    found = {
        "Python": (supported, sys.version.split()[0], "run `uv python install 3.13`"),
        "uv": (uv, uv, "not found; run `pipx install uv`"),
        "uv.lock": ((project.root / "uv.lock").exists(), "there", "run `uv sync` and commit it"),
        "git": (commit, f"at {commit}", start),
        "config": _tried(project.check_config, "four files, no mistake"),
        "schedules": _tried(lambda: check_schedules(project), "as config/delivery.yaml says"),
        "code": _tried(lambda: [*map(user_module, names)], "can be imported"),
        "variables": _tried(check_variables, "what sources.py needs is set"),
        "disk": (free >= 3, f"{free} GB free", more),
        # Not the bound method: to find the proxy reads the configuration, which may be broken.
        "port": _tried(lambda: target.proxy.check_port(), "free, or ours"),  # noqa: PLW0108
    }
    return [Finding(it, bool(ok), good if ok else bad) for it, (ok, good, bad) in found.items()]


def _tried(look: Callable[[], object], good: str) -> tuple[bool, str, str]:
    try:
        look()
    except Exception as error:  # the user's own code may raise anything
        return False, good, str(error) if isinstance(error, UserError) else repr(error)
    return True, good, ""


def check_schedules(project: Project, fix: bool = False) -> None:
    """Raise a UserError where a workflow starts at other times than config/delivery.yaml says.

    With `fix` those lines are set instead. GitHub reads times from YAML alone.
    """
    told, delivery = list[str](), project.delivery
    for name, wanted in {"retrain": delivery.retraining, "monitor": delivery.monitoring}.items():
        path = project.root / ".github" / "workflows" / f"{name}.yml"
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        right = re.sub(
            r"""(- cron: )("[^"]*"|'[^']*'|[^#\n]*[^#\s])""", rf'\1"{wanted.cron}"', text
        )
        if right != text and fix:
            write_atomic(path, right)
        elif right != text:
            told.append(f"{path.name} starts at other times than `{wanted.cron}`")
    if told:
        raise UserError(f"{', '.join(told)} (config/delivery.yaml); run `ml doctor --fix`")


def gh(project: Project, *words: str, given: str = "") -> Any:
    """Run `gh` in the project, and return the JSON that it answers with, if any."""
    try:
        return json.loads(run(["gh", *words], project.root, input=given, timeout=60) or "null")
    except UserError as error:
        said = str(error).replace("see `ml doctor`", "see https://cli.github.com")
        login = "auth login" in said and "nobody is logged in to GitHub: run `gh auth login`"
        raise UserError(login or said.rpartition("gh: ")[2]) from None


def carry_out(project: Project, mends: Sequence[Finding]) -> Iterator[str]:
    """Run the call of each finding; yield what was refused, as by a plan, and go on after it."""
    for it in mends:
        try:
            gh(project, *it.call, given=it.given)
        except UserError as error:
            yield f"{it.subject}: {error}"


def diagnose_github(project: Project) -> list[Finding]:
    """Look at everything that the workflows need on GitHub, and go on after a finding."""
    about = gh(project, "api", HERE)
    branch = about["default_branch"]
    found = [Finding("default branch", branch == "main", f"{branch}; workflows deliver from main")]
    for look in (_actions, _environments, _names, _rulesets, _owners, _schedules):
        try:
            found += look(project, about)
        except UserError as error:  # as where a plan has no rulesets
            found += [Finding(look.__name__.strip("_"), False, f"not shown: {error}")]
    return found


def _actions(project: Project, _: object) -> Iterator[Finding]:
    """Look whether the workflows' actions may run: else not one of their jobs starts."""
    path = f"{HERE}/actions/permissions"
    allowed, known = gh(project, "api", path).get("allowed_actions", "none"), ""
    if allowed == "selected":
        chosen = gh(project, "api", f"{path}/selected-actions")
        known = " ".join(chosen["patterns_allowed"]) + " actions/" * chosen["github_owned_allowed"]
    lacks = [] if allowed == "all" else [one for one in OWNERS if one not in known]
    yield Finding("actions", not lacks, f"allowed: {allowed}; lacks {', '.join(lacks) or 'none'}")


def _environments(project: Project, about: dict[str, Any]) -> Iterator[Finding]:
    listed = gh(project, "api", f"{HERE}/environments")["environments"]
    found = {each["name"]: each for each in listed}
    enforced, owner = not about["private"], about["owner"]
    if not enforced and owner["type"] == "Organization":  # only its owners are told the plan
        plan = gh(project, "api", f"orgs/{owner['login']}").get("plan", {})
        enforced = str(plan.get("name")).startswith("enterprise")
    for name in get_args(EnvironmentName):
        there, rules = name in found, found.get(name, {}).get("protection_rules", [])
        call: tuple[str, ...] = ("api", "--method", "PUT", f"{HERE}/environments/{name}")
        if name == "production":
            asked = enforced and any(rule["type"] == "required_reviewers" for rule in rules)
            bad = "nobody is asked before a delivery; set required reviewers"
            bad = bad if enforced else "not enforced if private and below the plan Enterprise"
            yield Finding("reviewers", asked, "asked" if asked else bad)
            there = there and (bool(rules) or not enforced)  # a call would take its rules away
            if enforced:
                me = gh(project, "api", "user")["id"]
                call += ("-f", "reviewers[][type]=User", "-F", f"reviewers[][id]={me}")
        said = "there" if name in found else "not there"
        yield Finding(name, name in found, said, () if there else call)


def _names(project: Project, _: object) -> Iterator[Finding]:
    runners = [f"DEPLOY_RUNNER_{place.upper()}" for place in get_args(EnvironmentName)]
    needs = needed_variables()
    why = "without it deliveries rehearse", "sources.py needs it"
    for kind, names, reason in zip(("variable", "secret"), (runners, needs), why, strict=True):
        for name in names:
            try:
                have = bool(gh(project, "api", f"{HERE}/actions/{kind}s/{name}"))
            except UserError as error:
                if "404" not in str(error):
                    raise
                have = False
            said = "set" if have else f"not set here: {reason}; `gh {kind} set {name}`"
            yield Finding(name, have or kind == "variable", said)
    watched = any(hasattr(user_module("sources"), name) for name in ("labels", "newest"))
    for file in ("deliver.yml", "retrain.yml", "monitor.yml", *["deploy.yml"] * watched):
        path = project.root / ".github" / "workflows" / file
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        for name in (name for name in needs if text and f"secrets.{name}" not in text):
            yield Finding(file, False, f"hands no {name} on; the README beside it says where")


def _rulesets(project: Project, _: object) -> Iterator[Finding]:
    there = gh(project, "api", f"{HERE}/rulesets?includes_parents=false&per_page=100")
    have = {each["name"] for each in there if each["enforcement"] == "active"}
    ids = {each["name"]: f"/{each['id']}" for each in there}
    for place, wanted in enumerate(json.loads((project.root / RULESETS).read_text())):
        name, said = wanted["name"], f"{RULESETS} has it, GitHub has it not, or not active"
        how = "PUT" if name in ids else "POST"
        call = ("api", "--method", how, f"{HERE}/rulesets{ids.get(name, '')}", "--input", "-")
        mend = said, call, json.dumps(wanted), f"jq '.[{place}]' {RULESETS} | "
        yield Finding(f"ruleset {name}", name in have, *(("there",) if name in have else mend))


def _owners(project: Project, _: object) -> Iterator[Finding]:
    wrong = gh(project, "api", f"{HERE}/codeowners/errors")["errors"]
    said = f"{wrong[0]['path']}:{wrong[0]['line']}: {wrong[0]['kind']}" if wrong else "can review"
    yield Finding("code owners", not wrong, said)


def _schedules(project: Project, _: object) -> Iterator[Finding]:
    for file in sorted(project.root.glob(".github/workflows/*.yml")):
        if "\n  schedule:" in file.read_text(encoding="utf-8"):
            path = f"{HERE}/actions/workflows/{file.name}"
            state = gh(project, "api", path)["state"]
            runs = gh(project, "api", f"{path}/runs?event=schedule&per_page=1")["workflow_runs"]
            said = f"{state}, last run by schedule: {runs[0]['created_at'] if runs else 'none yet'}"
            again = () if state == "active" else ("workflow", "enable", file.name)
            yield Finding(file.name, not again, said, again)
