"""Train the champion's commit on newer data, in a git worktree, and let `ml ship` do the rest.

All it starts from is in the log and the data: killed anywhere, it is run again. Days are those of
the data (`as_of`): who moves them, as a replay does, moves cool-down and budget too.
"""

import datetime as dt
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from model_delivery.bundle.candidate import CURRENT, current_candidate, git
from model_delivery.bundle.launch import run
from model_delivery.contract.settings import Retraining
from model_delivery.files import alone
from model_delivery.gates import GATES
from model_delivery.project import Project
from model_delivery.protocols import UserError, first_unknown_day
from model_delivery.registry import Event, event_log, newest
from model_delivery.releases import SUCCEEDS
from model_delivery.releases import champion as champion_of
from model_delivery.report.render import told
from model_delivery.report.verdict import Outcome, exit_code
from model_delivery.training.snapshot import inputs_hash

Because = Literal["schedule", "drift", "decay", "data", "person"]
Say = Callable[[str], None]
MONTH, REFUSED = 30, exit_code([Outcome.STOP], "retraining")
OF_NOW = ("config/gates.yaml", "config/delivery.yaml")
"""What is not the champion's: limits and environments, which are in no digest and no key."""
_SAID = {2: "refused, as said above (of a command's options: deliver the newer `delivery/` first)"}
_SAID |= {REFUSED: "a gate or the rollout says stop; `ml report` shows why", 30: "inconclusive"}


class Done(NamedTuple):
    """How it ended: exit code, a sentence, and the digest that came of it, if one did."""

    code: int
    sentence: str
    digest: str = ""


def retrain(
    project: Project, as_of: dt.date | None, because: Because, until: str, force: bool, say: Say
) -> Done:
    """Train the champion's commit as of a day, and ship it `until` a stage, if there is reason to.

    Without a day it is the source's newest. `force` skips cool-down and budget, and loses what is
    in no commit; `say` gets what is worth knowing on the way. A UserError says why the commit
    cannot be trained here, or, with code 30, that the source is down.
    """
    wait = "another `ml retrain` is at work; this one waits, and looks then what is left"
    with alone(project.work / "retrain.lock", lambda: say(wait)) as lock:
        events = event_log(project).events()
        champion = newest(events, environment="production")
        if champion is None:
            lacks = "production has no release to train again; deliver one by `ml ship`"
            if because == "schedule":  # in a new project no issue each week
                return Done(0, lacks)
            raise UserError(lacks)
        day = as_of or first_unknown_day()
        if str(day) <= champion.as_of:
            return Done(0, f"no new data as of {day}: {champion.release} is of {champion.as_of}")
        if held := "" if force else too_early(project.delivery.retraining, events, day):
            if because != "person" or not held.startswith("cool-down"):
                return Done(0, f"{held} (config/delivery.yaml, `retraining`; --force skips it)")
            say(f"{held}; it goes on, as a person asks for it")
        committed = Project(_worktree(project, champion))
        if not force:
            _check_whole(project, champion.release, committed)
        if until == "register" and committed.contract != project.contract:
            why = f"config/data.yaml here is not that of {champion.release}"
            raise UserError(f"{why}: its successor could not be deployed; deliver this first")
        words = ["--event", "retraining", "--as-of", str(day), "--until", until]
        env = {"ML_BECAUSE": because, SUCCEEDS: champion.digest, "GITHUB_SHA": str(champion.commit)}
        code = _ship(project, committed.root, words, env, lock)
        if code == REFUSED:
            try:
                _tell_refused(project, committed, champion, day, because)
            except UserError as error:
                say(f"cool-down and budget will not know of it: {error}")
        return _ended(project, champion, day, code)


def too_early(settings: Retraining, events: Sequence[Event], day: dt.date) -> str:
    """Say which of cool-down and budget holds a retraining as of a day; empty if none does.

    They count those that came to a rollout somewhere, or whose model a gate refused: one that was
    killed before that goes on.
    """
    tried = {digest for e in events if e.environment for digest in (e.digest, e.previous)}
    made = [e for e in events if e.trigger == "retraining" if e.type == "registered" or not e.blob]
    past = [dt.date.fromisoformat(e.as_of) for e in made if e.digest in tried or not e.blob]
    if sum((day - one).days < MONTH for one in past) >= settings.most_a_month:
        return f"budget spent: {settings.most_a_month} were tried in {MONTH} days"
    if past and (day - max(past)).days < settings.cooldown_days:
        return f"cool-down of {settings.cooldown_days} days: one was tried as of {max(past)}"
    return ""


def _worktree(project: Project, champion: Event) -> Path:
    """Check out a release's commit, with limits and environments of now; return its project."""
    commit, name, top = champion.commit or "", champion.release, project.work / "worktrees"
    if not commit:
        raise UserError(f"{name} was delivered from no commit; commit the project, and `ml ship`")
    if git(project, "cat-file", "-e", f"{commit}^{{commit}}") is None:
        mend = f"run `git fetch --unshallow`, or `git fetch origin {commit}`"
        raise UserError(f"{name}: its commit {commit[:12]} is not in this clone; {mend}")
    folder = top.resolve() / commit[:12]
    git(project, "worktree", "unlock", str(folder))  # git locks what it has not finished
    shutil.rmtree(top, ignore_errors=True)  # whatever is left of an earlier one, perhaps half
    git(project, "worktree", "prune")
    run(["git", "worktree", "add", "-qf", "--detach", str(folder), commit], project.root)
    root = folder / (git(project, "rev-parse", "--show-prefix") or "")
    if not (root / "uv.lock").exists():
        raise UserError(f"{name}: no uv.lock in its commit {commit[:12]}; commit it, and deliver")
    for path in OF_NOW:
        shutil.copyfile(project.root / path, root / path)
    git(Project(root), "update-index", "--skip-worktree", *OF_NOW)  # no change of its own
    return root


def _check_whole(project: Project, name: str, committed: Project) -> None:
    """Raise a UserError where the champion was trained by code that its commit does not have.

    Code of another commit that gave the same bytes, as with a newer development tool, is in one.
    """
    known = None  # of a release by an older version, or without its bytes, as `ml ship` says then
    with suppress(UserError):
        if (old := champion_of(project)) and old.lineage.get("changed_files"):
            known = old.lineage.get("code")
    if known not in (None, inputs_hash(committed)):
        why = f"{name}: its commit lacks some of the code that it was trained by"
        raise UserError(f"{why}; commit it and `ml ship`, or lose it by `--force`")


def _ship(home: Project, root: Path, words: list[str], facts: dict[str, str], lock: int) -> int:
    """Run `ml ship` of a worktree, in an environment of its own, on the store of a project."""
    place = (work := home.work.resolve()) / "environments" / "retraining"
    ours = ("VIRTUAL_ENV", "PYTHONPATH")  # they would lead to the code of this checkout
    env = {name: value for name, value in os.environ.items() if name not in ours} | facts
    env |= {"ML_HOME": str(work), "UV_PROJECT_ENVIRONMENT": str(place)}
    run(["uv", "sync", "--quiet", "--locked", "--python", sys.executable], root, env=env)
    command = [str(place / "bin" / "ml"), "ship", *words]
    # Of this command its words are the progress; the lock is theirs too, if this one is killed.
    with subprocess.Popen(command, cwd=root, env=env, stdout=2, pass_fds=[lock]) as child:
        with suppress(KeyboardInterrupt):
            return child.wait()
        child.terminate()  # it ends what it started
        return child.wait()


def _tell_refused(
    project: Project, committed: Project, champion: Event, day: dt.date, because: str
) -> None:
    """Let the log know, once, that a gate refused a model: it was tried.

    The event has neither digest nor bytes, so nothing can find it by name, or deploy it.
    """
    if not (project.work / CURRENT).exists():
        return
    candidate = current_candidate(project)
    said = [one for gate in GATES if (one := candidate.verdict(gate))]
    stopped = next((one for one in said if one.outcome is Outcome.STOP), None)
    trained = candidate.lineage["data"]["as_of"], candidate.lineage.get("code")
    if stopped is None or trained != (str(day), inputs_hash(committed)):
        return  # it was the rollout; or the data, of which nothing was trained
    about = {"release": f"refused {candidate.short}", "as_of": str(day)}
    facts = {"type": "verdict", "digest": "none", "blob": "", "commit": champion.commit}
    facts |= {"trigger": "retraining", "because": because, "reason": told(stopped.decisive)}
    verdicts = {one.gate: one.outcome for one in said}
    made = Event.model_validate(about | facts | {"against": champion.digest, "verdicts": verdicts})
    event_log(project).append(lambda events: newest(events, **about) or made)


def _ended(project: Project, champion: Event, day: dt.date, code: int) -> Done:
    """Say what came of a retraining, by the code of `ml ship` and by the log."""
    if code not in (0, 10):  # that old data is a reason to retrain is no reason against it
        why = _SAID.get(code, f"`ml ship` ended with code {code}; run it again")
        return Done(max(code, 1), f"{champion.release} stays in production: {why}")
    about = {"trigger": "retraining", "as_of": str(day), "commit": str(champion.commit)}
    made = newest([e for e in event_log(project).events() if e.blob], **about)
    if made is None:
        return Done(0, f"{champion.release} stays in production: nothing was registered")
    where = made.environment or f"the log; `ml deploy {made.release}` brings it on"
    return Done(0, f"{made.release} ({made.digest[:12]}) is in {where}", made.digest)
