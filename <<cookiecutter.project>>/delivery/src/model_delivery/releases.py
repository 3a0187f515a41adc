"""Releases by the log: champion, what a key led to, what passed staging, an environment's state."""

import itertools
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from model_delivery.bundle import candidate as candidates
from model_delivery.bundle.candidate import Candidate, git
from model_delivery.files import changed_files, write_atomic
from model_delivery.gates import COMPARED, GATES, limits_hash
from model_delivery.project import Project
from model_delivery.protocols import Strict, UserError
from model_delivery.registry import Event, blob_store, event_log, newest, shared
from model_delivery.report.verdict import Outcome, Trigger, Verdict, allows_promotion, finite
from model_delivery.training.snapshot import Snapshot, find_snapshot, inputs_hash

JUDGED = ("verdicts", "limits", "against", "key")
"""What is recorded anew when it changes."""
SUCCEEDS = "ML_SUCCEEDS"  # of a retraining: the champion whose commit it trains


class State(Strict):
    """The move after which an environment serves what it serves, and what is around it."""

    moves: list[Event] = []  # newest first, one for each installed digest
    left: list[str] = []  # digests that served and were then taken back: none to go back to
    untold: list[Event] = []  # what the log was not told
    trying: Event | None = None  # the move that a rollout is about, written before each act
    weight: float = 0.0  # the share of requests that it gets meanwhile
    verdict: Verdict | None = None  # on the last rollout, or so far
    shared: bool = False  # its log is the one of workflows, which only a job can write
    rehearsed: int = 0  # the port of a rehearsal: what it accepts serves elsewhere, or nowhere

    @property
    def current(self) -> Event | None:
        return self.moves[0] if self.moves else None

    @property
    def way_back(self) -> Event | None:
        """The newest move before the current one whose release was not taken back since."""
        bad = {*self.left}
        for newer, move in itertools.pairwise(self.moves):
            bad |= {str(newer.previous)} if newer.reason else set()  # it failed a canary
            if move.digest not in bad:
                return move
        return None

    def after(self, event: Event, keep: int) -> "State":
        """Return the state after one more event, with so many installed releases at most.

        A verdict, or a delivery of what serves, only tells another commit, or bytes. A release that
        is served again leaves those that were taken back; one that failed its canary may try again.
        """
        same = self.current is not None and self.current.digest == event.digest
        if event.type == "verdict" or (same and event.type == "promoted"):
            told = {"commit": event.commit, "blob": event.blob}
            own = (m.model_copy(update=told) if m.digest == event.digest else m for m in self.moves)
            moves = [*own]
        else:
            moves = [event, *(move for move in self.moves if move.digest != event.digest)]
        back = event.type == "rolled_back" and event.previous and not event.reason
        left = [*self.left, str(event.previous)] if back else self.left
        left = [digest for digest in left if digest != event.digest]
        facts = {"moves": moves[:keep], "left": left, "untold": [*self.untold, event]}
        return self.model_copy(update=facts)


def champion(project: Project, environment: str = "production") -> Candidate | None:
    """Return what an environment accepted last by the log."""
    events = event_log(project).events()
    move = newest(events, environment=environment)
    return restore(project, recorded(events, move)) if move else None


def accepted(project: Project, environment: str, keep: int) -> State:
    """Return the state, of so many releases, that an environment's events in the log lead to."""
    events, state = event_log(project).events(), State()
    for event in (one for one in events if one.environment == environment):
        move = event.model_copy(update={"blob": recorded(events, event).blob})  # as kept now
        state = state.after(move, keep)
    return state


def check_succeeds(digest: str) -> None:
    """Raise a UserError in the retraining of a champion that is none any more."""
    if (known := os.environ.get(SUCCEEDS, digest)) != digest:
        why = f"production accepted {digest[:12]} meanwhile, and this is the code of {known[:12]}"
        raise UserError(f"{why}; run `ml retrain` again")


def restore(project: Project, event: Event) -> Candidate:
    """Return a registered candidate, from the blob store if it is not here."""
    folder = candidates.candidate_folder(project, event.digest)
    blob_store(project).get(event.digest, event.blob, folder)
    return Candidate(folder)


def recall(project: Project, snapshot: Snapshot) -> str:
    """Fetch what was recorded of a snapshot's key, if its bytes are there; return the key."""
    key, events = candidates.training_key(project, snapshot), event_log(project).events()
    if known := newest(events, key=key):
        with suppress(UserError):
            candidate = restore(project, recorded(events, known))
            write_atomic(candidates.key_record(project, key), candidate.digest)
    return key


def judged(project: Project, candidate: Candidate, trigger: Trigger) -> dict[str, Verdict]:
    """Return what the gates said of a candidate here; a UserError names what speaks against it."""
    snapshot, said = find_snapshot(project, candidate.lineage["snapshot"]), dict[str, Verdict]()
    if candidate.lineage["data"].get("sample"):
        raise UserError(f"candidate {candidate.short}: made of drawn rows, so never deployed")
    for gate in GATES:
        # What was recorded elsewhere has its rows' verdict beside it, and not the rows.
        about = snapshot if gate == "data" and snapshot.folder.exists() else candidate
        verdict, again = about.verdict(gate), f"run `ml check {gate}`"
        if verdict is None:
            raise UserError(f"gate {gate}: no verdict on candidate {candidate.short}; {again}")
        if verdict.subject != (snapshot if gate == "data" else candidate).folder.name:
            raise UserError(f"gate {gate}: its verdict is on something else; {again}")
        if not allows_promotion(verdict.outcome, trigger):
            why = verdict.decisive.sentence
            raise UserError(f"gate {gate} says {verdict.outcome}, nothing was deployed: {why}")
        said[gate] = verdict
    model, load = (said[gate].against for gate in COMPARED)
    if model != load:
        raise UserError("gate load: judged beside another champion than `model`; run `ml check`")
    for name in changed_files(candidate.package):
        raise UserError(f"{candidate.package / name}: not as packaged; run `ml package`")
    return said


def admit(
    project: Project, place: str, current: Event | None, goal: Event, trigger: Trigger
) -> None:
    """Raise a UserError that names what speaks against a release beside the one that serves.

    On a machine that serves nothing yet, or in a job what the log does not know, that is the one
    which the log has as accepted.
    """
    name, production = f"{goal.release} ({goal.digest[:12]})", place == "production"
    beside = current
    if current is None or shared(project):
        moves = [event for event in event_log(project).events() if event.environment == place]
        known = current and newest(moves, digest=current.digest)
        beside = current if known else newest(moves)
    old = current or beside
    if production and old and goal.as_of < old.as_of:  # staging may have seen a failed retraining
        than = f"that of {old.release} ({old.as_of}); run `ml ship --as-of {old.as_of}`"
        raise UserError(f"{name}: its data ends {goal.as_of}, before {than}")
    for gate in GATES:
        if goal.limits.get(gate) != limits_hash(project, gate):
            why = f"config/gates.yaml or data.yaml changed: run `ml ship --release {goal.release}`"
            raise UserError(f"gate {gate}: {why}, or of the current candidate `ml check {gate}`")
        outcome = goal.verdicts.get(gate, Outcome.CRASH)
        if not allows_promotion(outcome, trigger):
            raise UserError(f"gate {gate} says {outcome} of {name}: nothing was deployed")
    if production and (beside and beside.digest) not in (goal.against, goal.digest):
        why = "judged beside another champion than is served; run `ml ship`, or the workflow again"
        raise UserError(f"gates {' and '.join(COMPARED)}: {why}")


def register(
    project: Project, candidate: Candidate, said: Mapping[str, Verdict], trigger: str, key: str = ""
) -> Event:
    """Keep a candidate's bytes and verdicts, and name it; return the event that says so.

    What the log holds already is not written again, and has the commit of now. `key` is what led
    to it now, if not its own.
    """
    blobs, digest, facts = blob_store(project), candidate.digest, _facts(candidate)
    prefix = f"v{project.about['version']}+data.{facts['as_of'].replace('-', '')}"
    commit = delivering(project, None if key else candidate) or candidate.lineage["commit"]
    facts["verdicts"] = {gate: verdict.outcome for gate, verdict in said.items()}
    facts["limits"] = {gate: verdict.limits for gate, verdict in said.items()}

    def decide(events: Sequence[Event]) -> Event:
        known = newest(events, digest=digest, environment=None)
        facts["key"] = key or (known.key if known else candidate.lineage["key"])
        # Of other limits of the data, which go along with the bytes, these are stored anew.
        same = known and known.limits.get("data") == facts["limits"].get("data")
        if known and same and blobs.has(digest, known.blob):
            # What a retraining recorded keeps its commit, and a tag is looked for by its own.
            own = trigger == "retraining" or known.trigger != "retraining"
            if own and all(getattr(known, name) == facts[name] for name in JUDGED):
                return known
            facts.update(type="verdict", release=known.release, blob=known.blob)
        else:
            named = (e.release.rpartition(".") for e in events)
            taken = [int(number) for rest, _, number in named if rest == prefix]
            name = known.release if known else f"{prefix}.{max(taken, default=0) + 1}"
            blob = blobs.put(digest, candidate.folder)
            facts.update(type="registered", release=name, blob=blob)
        return Event(digest=digest, commit=commit, trigger=trigger, **facts)

    return event_log(project).append(decide).model_copy(update={"commit": commit})


def _facts(candidate: Candidate) -> dict[str, Any]:
    """Return what a candidate is, and how it did beside the champion of its gates."""
    lineage, model = candidate.lineage, candidate.verdict("model")
    checks = [check for check in (model.checks if model else []) if finite(check.value)]
    changed = lineage.get("changed_files")
    return {
        "as_of": str(lineage["data"]["as_of"]),
        "snapshot": lineage["snapshot"],
        "parameters": lineage["parameters"],
        "metrics": {check.name: [check.value, check.low, check.high] for check in checks},
        "against": model.against if model else None,
        "because": os.environ.get("ML_BECAUSE", ""),
        "reason": f"{changed} changed files in no commit" if changed else "",
    }


def delivering(project: Project, candidate: Candidate | None = None) -> str | None:
    """Return the commit that is being delivered: in a job not always the one checked out.

    Of a candidate that other code trained, all of it in a commit, it is that of its training.
    """
    known = candidate.lineage if candidate else {}
    told = known.get("code") and not known.get("changed_files")
    if told and known["code"] != inputs_hash(project):
        return str(known["commit"])
    return os.environ.get("GITHUB_SHA") or git(project, "rev-parse", "HEAD")


def hosted() -> bool:
    """Return whether this is a runner of GitHub's, which is gone afterwards."""
    return os.environ.get("RUNNER_ENVIRONMENT") == "github-hosted"


def run_page() -> str:
    """Return the address of the workflow run that this is a job of; empty elsewhere."""
    known = [os.environ.get(f"GITHUB_{name}") for name in ("SERVER_URL", "REPOSITORY", "RUN_ID")]
    return f"{known[0]}/{known[1]}/actions/runs/{known[2]}" if known[2] else ""


def recorded(events: Sequence[Event], event: Event) -> Event:
    """Return what was recorded last of an event's digest itself; the event, if nothing was.

    It is the registration or newer verdicts, and has the bytes as they are kept now.
    """
    return newest(events, digest=event.digest, environment=None) or event


def find(events: Sequence[Event], wanted: str) -> Event:
    """Return the first registration of a release, given by name or first digits of its digest."""
    named = {e.digest for e in events if e.release == wanted or e.digest.startswith(wanted)}
    first = {e.digest: e for e in reversed(events) if e.type == "registered"}
    found = [event for digest, event in first.items() if digest in named]
    if len(found) != 1:
        many = "more than one" if found else "no"
        raise UserError(f"{many} release `{wanted}`; `ml history` names all of them")
    return found[0]


def resolve(project: Project, wanted: str) -> Event:
    """Return what to deploy by a tag (`refs/tags/v1` is nothing else), a name or a digest."""
    tag = wanted.removeprefix("refs/tags/")
    if commit := git(project, "rev-parse", "--verify", "--quiet", f"refs/tags/{tag}^{{commit}}"):
        return staged(project, tag, commit)
    if tag != wanted:
        raise UserError(f"no tag `{tag}` here; `git fetch --tags` brings those of `origin`")
    events = event_log(project).events()
    goal = recorded(events, find(events, wanted))
    # A retraining is of the champion's commit, whatever is checked out where it is deployed.
    pushed = "" if goal.trigger == "retraining" else os.environ.get("GITHUB_SHA")
    return goal.model_copy(update={"commit": pushed or goal.commit})


def staged(project: Project, tag: str, commit: str) -> Event:
    """Return what passed staging at a tag's commit, named by the tag.

    It is never looked for by a key made anew. A UserError says why there is none, and what helps.
    """
    if git(project, "merge-base", "--is-ancestor", commit, "HEAD") is None:
        mend = "merge it, wait for staging, then `git tag NAME` that, `git push origin NAME`"
        raise UserError(f"{tag}: its commit {commit[:12]} is not on the branch here; {mend}")
    events = event_log(project).events()
    told = [e for e in events if e.environment == "staging"]  # good is `digest`, bad `previous`
    passed = newest([e for e in told if e.type != "rolled_back"], commit=commit)
    again = "run deliver.yml of that commit again: `gh run list --workflow deliver.yml "
    again += f"--commit {commit}` names the run, `gh run rerun ID` starts it, for 30 days; where "
    again += "there is none, push a commit, which may be empty, and tag that. On this machine: "
    again += "`ml ship --until load` and `ml deploy --to staging`. Then deliver the tag again"
    if passed is None:
        raise UserError(f"{tag}: nothing passed staging at its commit {commit[:12]}; {again}")
    ends = [e for e in told if passed.digest in (e.digest, e.type == "rolled_back" and e.previous)]
    if ends[-1].digest != passed.digest:
        why = f"rolled back in staging ({ends[-1].reason or 'by hand'})"
        mend = f"bring it back there by rollback.yml with the release {passed.release}"
        raise UserError(f"{tag}: {passed.release} was {why}; {mend}")
    serves = newest(events, environment="production")
    if serves and passed.as_of < serves.as_of:  # of a retraining since
        than = f"that of {serves.release} in production ({serves.as_of})"
        raise UserError(f"{tag}: its data ends {passed.as_of}, before {than}; {again}")
    goal, data = recorded(events, passed), passed.release.partition("+")[2]
    return goal.model_copy(update={"commit": commit, "release": f"{tag}+{data}"})
