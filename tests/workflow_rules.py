"""What workflows must keep to, as rules over the parsed files; each returns what breaks it.

act ignores permissions, filters, environments and concurrency, so a run cannot show any of this.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
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
HANDED_ON = {
    # Whether there are attestations: asked by the set-up, as a schedule's event does not say it.
    "ML_ATTESTED": "${{ steps.setup.outputs.visibility == 'public' }}",
    "MLFLOW_TRACKING_URI": "${{ vars.MLFLOW_TRACKING_URI }}",
}
"""What `ml` must know where it delivers: to verify who built a blob, and where to show the log."""
# A schedule's event has no repository; its ref is the default branch.
DEFAULT_BRANCH = "github.event.repository.default_branch || github.ref_name"

Job = dict[str, Any]
_USES = re.compile(r"\buses: ([^\s,}]+(?: # \S+)?)")
_EVENT = re.compile(r"github\.event_name ([!=])= '(\w+)'")
_INPUT = re.compile(r"\$\{\{ inputs\.([\w-]+) \}\}")
_ML = re.compile(r"\buv run ml\b")
_REGISTERS = re.compile(r"\buv run ml (?:ship|retrain) --until register\b")
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
    def steps(self) -> list[dict[str, Any]]:
        """Its steps; none where it only calls."""
        return list(self.job.get("steps", []))

    @property
    def deploys(self) -> bool:
        """Whether it is a job of deploy.yml: one verb of `ml` on an environment's machine."""
        return self.place.rpartition(" → ")[2].startswith("deploy.yml: ")

    @property
    def group(self) -> str:
        """The group that its workflow waits in, or nothing."""
        place = self.workflow.get("concurrency", "")
        return str(self.value(place["group"] if isinstance(place, dict) else place))


@dataclass(frozen=True)
class Tree:
    """A repository's folder `.github`."""

    repository: Path

    @cached_property
    def workflows(self) -> dict[str, Any]:
        """Each workflow by its file's name, as read once."""
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


def more_jobs_of_a_pull_request(tree: Tree) -> list[str]:
    """List jobs that a pull request starts, but those of ci.yml and the audit."""
    return [
        node.place
        for node in tree.nodes()
        if "pull_request" in node.events
        if not node.place.startswith("ci.yml: ") and node.place != "security.yml: audit"
    ]


def groups_of_environments(tree: Tree) -> list[str]:
    """List jobs of deploy.yml whose group is not its verb's and its environment's alone."""
    return [
        f"{node.place}: waits in {node.group or 'no group'}"
        for node in tree.nodes()
        if node.deploys
        if node.group != f"{node.inputs.get('verb')}-{node.inputs.get('environment')}"
    ]


def limits_of_a_branch(tree: Tree) -> list[str]:
    """List jobs of deploy.yml that read limits of a pushed commit: only deploying to test may."""
    found = []
    for node in filter(lambda node: node.deploys, tree.nodes()):
        own = (node.inputs.get("verb"), node.inputs.get("environment")) == ("deploy", "test")
        wanted = f"${{{{ {'github.sha || ' if own else ''}{DEFAULT_BRANCH} }}}}"
        refs = [
            node.value(step.get("with", {}).get("ref", "nothing"))
            for step in node.steps
            if step.get("uses", "").startswith("actions/checkout@")
        ]
        if refs != [wanted]:
            found.append(f"{node.place}: checks out {', '.join(refs) or 'nothing'}")
    return found


def not_handed_on(tree: Tree) -> list[str]:
    """List steps that run `ml` where something is delivered, and keep from it what it must know.

    A pull request only compares with what was delivered; its own candidate never is.
    """
    found = []
    for node in tree.nodes():
        asked = [step.get("id") for step in node.steps if str(step.get("uses")).startswith(_OWN)]
        for step in node.steps if node.events - {"pull_request"} else ():
            if _ML.search(step.get("run", "")):
                said = {name: step.get("env", {}).get(name) for name in HANDED_ON}
                wrong = [f"{k} is {v}" for k, v in said.items() if v != HANDED_ON[k]]
                wrong += [] if "setup" in asked else ["nobody asked who may see the repository"]
                found += [f"{node.place}: {step['name']}: {what}" for what in wrong]
    return found


def unattested(tree: Tree) -> list[str]:
    """List what is registered or published without a word on who built it, in the same job."""
    found = []
    for place, job in tree.jobs():
        subjects = " ".join(
            " ".join(map(str, step.get("with", {}).values()))
            for step in job.get("steps", [])
            if step.get("uses", "").startswith("actions/attest@")
            if step.get("if", "").removesuffix(" }}").endswith("visibility == 'public'")
        )
        for step in job.get("steps", []):
            command, name = step.get("run", ""), step.get("id", "")
            made = []
            if _REGISTERS.search(command):
                made = [f".ml/registry/blobs/${{{{ steps.{name}.outputs.digest }}}}.tar.xz"]
            elif step.get("uses", "").startswith("docker/build-push-action@"):
                made = [f"${{{{ steps.{name}.outputs.digest }}}}"]
            elif "gh release create" in command and "/package/*" in command:
                made = ["/package/*"]
            found += [f"{place}: {what}" for what in made if what not in subjects]
    return found


def unnoticed(tree: Tree) -> list[str]:
    """List commands whose failure is lost: of `echo "$(…)"` the shell only knows that of `echo`."""
    steps = [(name, step.get("run", "")) for name, step in tree.steps()]
    return [f"{name}: {run}" for name, run in steps if re.search(r"""echo\s+"[^"]*\$\(""", run)]


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
        more_jobs_of_a_pull_request,
        groups_of_environments,
        limits_of_a_branch,
        not_handed_on,
        unattested,
        unnoticed,
    )
}
