"""The project that is measured, and the naive service beside it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.baking import ROOT, environment, free_port

HERE = Path(__file__).parent
INSIDE, NAIVE = HERE / "inside.py", HERE / "naive.py"
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
NAIVE_SECONDS = 120
RENDERS = 3
WHO = ("-c", "user.name=bench", "-c", "user.email=bench@example.org")


@dataclass
class Subject:
    """What is measured, how often, and every raw value."""

    folder: Path
    project: Path | None
    rounds: int
    raw: dict[str, Any] = field(default_factory=dict)


def run(*command: str, cwd: Path, env: dict[str, str] | None = None) -> str:
    """Run a command and return what it printed; its messages go on to ours."""
    done = subprocess.run(
        command, cwd=cwd, env=environment(env), stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


def say(sentence: str) -> None:
    """Tell what is going on."""
    sys.stderr.write(f"{sentence}\n")


def load_average(most: float = 1.0, patience: float = 60) -> float:
    """Wait a while for a calm machine; return the load average of the last minute."""
    deadline = time.monotonic() + patience
    while os.getloadavg()[0] > most and time.monotonic() < deadline:
        time.sleep(2)
    return os.getloadavg()[0]


def generate(subject: Subject) -> list[float]:
    """Generate the default project a few times; return the seconds of each."""
    seconds = []
    for turn in range(RENDERS):
        output = subject.folder / str(turn)
        command = [sys.executable, "-m", "cookiecutter", "--no-input", "--output-dir", str(output)]
        started = time.perf_counter()
        run(*command, str(ROOT), cwd=subject.folder)
        seconds.append(time.perf_counter() - started)
    return seconds


def train(subject: Subject) -> None:
    """Take the steps up to a judged candidate, as a user does, unless there is one."""
    if subject.project is not None:
        return
    project = subject.project = next(subject.folder.glob("0/*"))
    say(f"training in {project}")
    run("git", "init", "--quiet", "--initial-branch", "main", cwd=project)
    run("uv", "sync", "--quiet", cwd=project)
    run("git", "add", ".", cwd=project)
    run("git", *WHO, "commit", "--quiet", "-m", "Start from the template", cwd=project)
    run("uv", "run", "ml", "ship", "--until", "model", cwd=project)


def inside(subject: Subject, *arguments: str) -> Any:
    """Run one measurement with the project's own interpreter."""
    assert subject.project is not None
    command = ("uv", "run", "--quiet", "python", str(INSIDE), *arguments)
    return json.loads(run(*command, cwd=subject.project))


@contextlib.contextmanager
def naive(subject: Subject, files: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Fit and serve the naive service; yield its address and ROC AUC."""
    script = ("uv", "run", "--quiet", "--script", str(NAIVE))
    model = str(subject.folder / "naive.joblib")
    fit = (*script, "fit", files["train"], files["test"], model)
    fitted = json.loads(run(*fit, cwd=subject.folder, env=ONE_THREAD))
    port = str(free_port())
    process = subprocess.Popen([*script, "serve", model, port], env=environment(ONE_THREAD))
    try:
        _wait(f"http://127.0.0.1:{port}/docs", process)
        yield f"http://127.0.0.1:{port}", fitted["auc"]
    finally:
        process.terminate()
        process.wait()


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + NAIVE_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(url, timeout=2).close()  # noqa: S310 - http, from above
            return
        time.sleep(0.2)
    raise RuntimeError(f"the naive service did not start (exit code {process.poll()})")
