"""What workflows must keep to, as rules over the parsed files; each returns what breaks it.

act ignores permissions, filters, environments and concurrency, so a run cannot show any of this.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.harness.workflow import read_yaml
from tests.workflow_expressions import reduced

PINS = [
    line
    for line in Path(__file__).with_name("action-pins.txt").read_text().splitlines()
    if not line.startswith("#")
]
HOSTED = "ubuntu-24.04"
COMMENTS = "ci.yml: comment"
"""The one job of a pull request that may write, and only on the pull request."""

Job = dict[str, Any]
_USES = re.compile(r"\buses: ([^\s,}]+(?: # \S+)?)")
_EVENT = re.compile(r"github\.event_name ([!=])= '(\w+)'")
_INPUT = re.compile(r"\$\{\{ inputs\.([\w-]+) \}\}")
_OWN = "./.github/"


def triggers(workflow: Mapping[str, Any]) -> dict[str, Any]:
    """Return the events that start a workflow, each with its filters."""
    events = workflow["on"]
    names = [events] if isinstance(events, str) else events
    return {name: (events[name] if isinstance(events, dict) else None) or {} for name in names}


def allowed(events: set[str], condition: object) -> set[str]:
    """Return those events for which a job's `if` may hold, as far as it names them."""
    left = set(events)
    text = str(condition).removeprefix("${{").removesuffix("}}")
    for part in [] if "||" in text else text.split("&&"):
        if match := _EVENT.fullmatch(part.strip()):
            left = left & {match[2]} if match[1] == "=" else left - {match[2]}
    return left


@dataclass(frozen=True)
class Node:
    """A job as an event reaches it: in the workflow started, or in one that is called from it."""

    place: str
    """`deliver.yml: production → deploy.yml: deploy`"""
    workflow: Mapping[str, Any]
    job: Job
    events: frozenset[str]
    """What may start it."""
    caller: Node | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)
    """What its caller gives."""

    @property
    def calls(self) -> bool:
        """Whether it only calls another workflow."""
        return "uses" in self.job

    @property
    def path(self) -> list[Node]:
        """The job itself, its caller, and so on."""
        return [self, *(self.caller.path if self.caller else [])]

    @property
    def permissions(self) -> Any:
        """What its token may do."""
        return self.job.get("permissions", self.workflow.get("permissions"))

    @property
    def environment(self) -> str:
        """The environment that it enters, or nothing."""
        place = self.job.get("environment", "")
        return str(self.value(place["name"] if isinstance(place, dict) else place))

    @property
    def secrets(self) -> set[str]:
        """The secrets that it names; `inherit` and the like as `all`."""
        text = json.dumps([self.job, self.workflow.get("env", {})])
        used = " ".join(re.findall(r"\$\{\{(.*?)\}\}", text))
        rest = re.search(r"\bsecrets\b(?!\.\w)", used) or self.job.get("secrets") == "inherit"
        return set(re.findall(r"\bsecrets\.(\w+)", used)) | ({"all"} if rest else set())

    def value(self, text: Any) -> Any:
        """Return a value with what the caller gives put in."""
        return reduced(text, self.inputs) if isinstance(text, str) else text

    @property
    def group(self) -> str:
        """The group that its workflow waits in, or nothing."""
        place = self.workflow.get("concurrency", "")
        return str(self.value(place["group"] if isinstance(place, dict) else place))


@dataclass(frozen=True)
class Tree:
    """A repository's folder `.github`."""

    repository: Path

    @property
    def workflows(self) -> dict[str, Any]:
        """Each workflow by its file's name."""
        files = sorted(self.repository.glob(".github/workflows/*.y*ml"))
        return {file.name: read_yaml(file) for file in files}

    @property
    def actions(self) -> list[Path]:
        """The files of the repository's own actions."""
        return sorted(self.repository.glob(".github/actions/*/action.y*ml"))

    @property
    def files(self) -> list[Path]:
        """Every YAML file."""
        return sorted(self.repository.glob(".github/**/*.y*ml"))

    def jobs(self) -> Iterator[tuple[str, Job]]:
        """Return each job with its place."""
        for name, workflow in self.workflows.items():
            for job, what in workflow["jobs"].items():
                yield f"{name}: {job}", what

    def steps(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Return each step of each job and action with its place."""
        for place, job in self.jobs():
            for step in job.get("steps", []):
                yield place, step
        for file in self.actions:
            for step in read_yaml(file)["runs"]["steps"]:
                yield f"{file.parent.name}/{file.name}", step

    def nodes(self) -> Iterator[Node]:
        """Return each job as events reach it; one that is called, once for each that calls it."""
        for name, workflow in self.workflows.items():
            events = set(triggers(workflow)) - {"workflow_call"}
            if events:
                yield from self._nodes(name, events, None, {})

    def _nodes(
        self, name: str, events: set[str], caller: Node | None, inputs: Mapping[str, Any]
    ) -> Iterator[Node]:
        if caller and f"{name}: " in caller.place:
            raise ValueError(f"{name} calls itself: {caller.place}")
        workflow = self.workflows[name]
        for job, what in workflow["jobs"].items():
            left = frozenset(allowed(events, what.get("if", "")))
            before = f"{caller.place} → " if caller else ""
            node = Node(f"{before}{name}: {job}", workflow, what, left, caller, inputs)
            yield node
            if node.calls:
                called = str(what["uses"]).removeprefix("./.github/workflows/")
                given = {key: node.value(value) for key, value in what.get("with", {}).items()}
                yield from self._nodes(called, set(left), node, given)

    def caches(self, step: Mapping[str, Any], given: Mapping[str, Any] | None = None) -> bool:
        """Tell whether a step may restore or save a cache, also inside an action of our own."""
        uses, own = str(step.get("uses", "")), step.get("with", {})
        known = given or {}
        inputs = {k: _INPUT.sub(lambda m: str(known.get(m[1], m[0])), str(own[k])) for k in own}
        if uses.startswith(_OWN):
            return any(
                self.caches(inner, _defaults(action) | inputs)
                for action in map(read_yaml, (self.repository / uses).glob("action.y*ml"))
                for inner in action["runs"]["steps"]
            )
        if uses.startswith("astral-sh/setup-uv@"):  # caches on a hosted runner unless told not to
            return inputs.get("enable-cache", "auto").lower() != "false"
        asked = {v.lower() for k, v in inputs.items() if k.startswith("cache")} - {"", "false"}
        return uses.startswith("actions/cache") or bool(asked)


def _defaults(action: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(what.get("default", "")) for name, what in action.get("inputs", {}).items()}


def unpinned(tree: Tree) -> list[str]:
    """List actions that are neither our own nor a commit with its version from the one list."""
    found = []
    for file in tree.files:
        for used in _USES.findall(file.read_text()):
            own = used.startswith(_OWN) and (tree.repository / used).exists()
            if not own and used not in PINS:
                found.append(f"{file.name}: {used}")
    return found


def strangers_code_with_privileges(tree: Tree) -> list[str]:
    """List triggers that run what a stranger proposes with the rights of the repository."""
    bad = {"pull_request_target", "workflow_run"}
    return [f"{n}: {e}" for n, w in tree.workflows.items() for e in bad & set(triggers(w))]


def privileges_of_a_pull_request(tree: Tree) -> list[str]:
    """List secrets, environments, own runners and rights to write that a pull request reaches."""
    found = []
    for node in tree.nodes():
        if "pull_request" not in node.events:
            continue
        found += [f"{node.place}: secret {name}" for name in sorted(node.secrets)]
        if node.environment:
            found.append(f"{node.place}: environment {node.environment}")
        runner = node.value(node.job.get("runs-on"))
        if not node.calls and runner != HOSTED:
            found.append(f"{node.place}: runs on {runner}")
        may = node.permissions
        if not isinstance(may, dict):
            found.append(f"{node.place}: permissions {may}")
            continue
        writes = {name for name, value in may.items() if value not in ("read", "none")}
        writes -= {"pull-requests"} if node.place == COMMENTS else set()
        found += [f"{node.place}: writes {name}" for name in sorted(writes)]
    return found


def caches_of_privileged_jobs(tree: Tree) -> list[str]:
    """List caches outside of pull requests: one of those might have filled them."""
    return [
        f"{node.place}: {step['name']}"
        for node in tree.nodes()
        if node.events - {"pull_request"}
        for step in node.job.get("steps", [])
        if tree.caches(step, node.inputs)
    ]


def concurrency(tree: Tree) -> list[str]:
    """List workflows without a group, and deploying jobs that one cancels or drops."""
    found = [
        f"{name}: no concurrency"
        for name, workflow in tree.workflows.items()
        if "concurrency" not in workflow and set(triggers(workflow)) != {"workflow_call"}
    ]
    for node in tree.nodes():
        if not node.environment:
            continue
        places = [place for part in node.path for place in (part.job, part.workflow)]
        groups = [place["concurrency"] for place in places if "concurrency" in place]
        found += [f"{node.place}: no concurrency"] if not groups else []
        for group in groups:
            given = group if isinstance(group, dict) else {}
            if given.get("cancel-in-progress") is not False or given.get("queue") != "max":
                found.append(f"{node.place}: {group}")
    return found


def deadlocks(tree: Tree) -> list[str]:
    """List called workflows that wait in the group which a caller of theirs holds till its end."""
    return [
        f"{node.place}: {node.group}"
        for node in tree.nodes()
        if node.caller and node.group in {caller.group for caller in node.caller.path} - {""}
    ]


def more_than_the_caller_may(tree: Tree) -> list[str]:
    """List rights of a called job that its caller has not: GitHub would not start it."""
    order = ("none", "read", "write")
    found = []
    for node in tree.nodes():
        if node.caller and isinstance(node.permissions, dict):
            may = node.caller.permissions
            for name, value in node.permissions.items():
                if order.index(value) > order.index(may.get(name, "none")):
                    found.append(f"{node.place}: {name}: {value}")
    return found


RULES = {
    rule.__name__: rule
    for rule in (
        unpinned,
        strangers_code_with_privileges,
        privileges_of_a_pull_request,
        caches_of_privileged_jobs,
        concurrency,
        deadlocks,
        more_than_the_caller_may,
    )
}
