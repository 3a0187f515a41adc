"""Make the project `late-departures` in `demo/`, ship it, and show a real answer; or stop it.

Run by `make demo` and `make demo-down`. It takes the steps a newcomer would, in the order that
the template prints them, and goes on where an earlier run was interrupted. `make test-newest`
tests the same project with the newest versions that its bounds allow, whatever their day.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECT = "late-departures"
DAY = re.compile(r"^(?:# )?exclude-newer = .*\n", re.MULTILINE)  # `# ` in a script's own block

# Runs in the demo project's own environment, where its contract and its parquet files can be read.
FLIGHT = """
import json, math, sys
import pyarrow.parquet
from model_delivery.project import find_project

project = find_project()
candidate = (project.work / "candidate").read_text().strip()
(file,) = project.work.glob(f"candidates/{candidate}*/test.parquet")
row = pyarrow.parquet.read_table(file).slice(0, 1).to_pylist()[0]
for name in (project.contract.target, "score"):
    row.pop(name)
row = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}
port = project.delivery.environments["production"].port
json.dump({"port": port, "row": row}, sys.stdout, default=lambda moment: moment.isoformat())
"""


OF_A_JOB = ("GITHUB_", "RUNNER_")
"""How the variables begin by which `ml` knows that it runs in a workflow, where it rehearses."""


class DemoError(Exception):
    """A step of the demo that failed, in one sentence, with the exit code to leave with."""

    def __init__(self, sentence: str, code: int = 1) -> None:
        super().__init__(sentence)
        self.code = code


def environment() -> dict[str, str]:
    """Return this process's variables, but for what is the template's own, or its job's in CI."""
    away = ("VIRTUAL_ENV", *OF_A_JOB)
    return {k: v for k, v in os.environ.items() if not k.startswith(away)}


def run(*command: str, cwd: Path, capture: bool = False) -> str:
    """Run one command, shown before it starts, in `cwd`.

    Raises
    ------
    DemoError
        When the command fails; carries its exit code.
    """
    if not capture:
        print(f"$ {shlex.join(command)}", flush=True)
    out = subprocess.PIPE if capture else None
    done = subprocess.run(command, cwd=cwd, env=environment(), text=True, stdout=out, check=False)
    if done.returncode:
        code = done.returncode if done.returncode > 0 else 1
        said = "" if capture else ": see above"
        raise DemoError(f"`{' '.join(command[:4])}` ended with {code} in {cwd}{said}", code)
    return done.stdout or ""


def generate(demo: Path) -> Path:
    """Render the project into `demo`, whole or not at all, and return its folder."""
    project = demo / PROJECT
    if project.exists():
        print(f"{project} is there: going on in it (afresh: `make demo-down`, then remove it)")
        return project
    fresh = demo / ".rendering"
    shutil.rmtree(fresh, ignore_errors=True)
    options = ("--no-input", "--output-dir", str(fresh))
    run(sys.executable, "-m", "cookiecutter", *options, str(ROOT), cwd=ROOT)
    print("`make demo` takes these steps now.\n", flush=True)
    (fresh / PROJECT).rename(project)
    fresh.rmdir()
    return project


def first_commit(project: Path) -> None:
    """Make the repository and its first commit, uv.lock in it, unless there is one."""
    if not (project / ".git").exists():
        run("git", "init", "--quiet", "--initial-branch", "main", cwd=project)
    run("uv", "sync", cwd=project)
    try:
        run("git", "rev-parse", "--verify", "--quiet", "HEAD", cwd=project, capture=True)
    except DemoError:
        who = ("-c", "user.name=demo", "-c", "user.email=demo@example.org")
        run("git", "add", ".", cwd=project)
        run("git", *who, "commit", "--quiet", "-m", "Start from the template", cwd=project)


def ask(port: int, row: dict[str, object]) -> tuple[str, str]:
    """Return a curl command about one flight, and what the service answers to it."""
    url = f"http://127.0.0.1:{port}/predict"
    body = json.dumps({"rows": [row]})
    curl = shlex.join(["curl", "-s", url, "-H", "content-type: application/json", "-d", body])
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(url, data=body.encode(), headers=headers)
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - http, from above
        return curl, answer.read().decode()


def up(demo: Path) -> None:
    """Generate, set up, ship, and show what production answers."""
    start = time.monotonic()
    demo.mkdir(exist_ok=True)
    project = generate(demo)
    first_commit(project)
    run("uv", "run", "ml", "ship", cwd=project)
    flight = json.loads(run("uv", "run", "python", "-c", FLIGHT, cwd=project, capture=True))
    curl, answer = ask(flight["port"], flight["row"])
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    megabytes = largest / (1024**2 if sys.platform == "darwin" else 1024)
    print(
        f"\nIn production. Ask about a real flight:\n\n{curl}\n\n{answer}\n\n"
        f"Report   {project / '.ml' / 'report' / 'report.html'}\n"
        f"Stop it  make demo-down\n\n"
        f"{time.monotonic() - start:.0f} s; the largest process took {megabytes:.0f} MB."
    )


def down(demo: Path) -> None:
    """Stop all that is deployed; the folder stays."""
    if not (demo / PROJECT / ".venv").exists():
        print("No demo is here: nothing to stop.")
        return
    for state in sorted((demo / PROJECT / ".ml").glob("*/state.json")):
        run("uv", "run", "ml", "deploy", "--stop", "--to", state.parent.name, cwd=demo / PROJECT)


def lift(project: Path) -> list[str]:
    """Let a project take releases of any day; return the files that held it back.

    Its bounds stay: they are decisions, and Dependabot proposes to change them.

    Raises
    ------
    DemoError
        When no file names a day: nothing would be newer than in any other test.
    """
    files = [project / "pyproject.toml", *sorted(project.glob("delivery/**/checks/*.py"))]
    held = [file for file in files if DAY.search(file.read_text())]
    if not held:
        raise DemoError(f"no file of {project} names a day with `exclude-newer`")
    for file in held:
        file.write_text(DAY.sub("", file.read_text()))
    return [str(file.relative_to(project)) for file in held]


def newest(demo: Path) -> None:
    """Generate afresh, lift the day, run the project's tests, ship, and show it in MLflow."""
    shutil.rmtree(demo, ignore_errors=True)
    demo.mkdir(parents=True)
    project = generate(demo)
    print(f"any day: {', '.join(lift(project))}", flush=True)
    first_commit(project)
    run("uv", "run", "pytest", cwd=project)
    run("uv", "run", "ml", "ship", "--until", "register", cwd=project)
    view = f"MLFLOW_TRACKING_URI=sqlite:///{project}/.ml/view.sqlite"
    run("env", view, "uv", "run", "ml", "history", "--ui", cwd=project)


def main(arguments: list[str] | None = None) -> int:
    """Run `up`, `down` or `newest`; return the exit code."""
    actions = {"up": up, "down": down, "newest": newest}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=actions)
    parser.add_argument("--folder", type=Path, default=ROOT / "demo", help="default: demo/")
    options = parser.parse_args(arguments)
    try:
        actions[options.action](options.folder.resolve())
    except DemoError as error:
        print(error, file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("Interrupted: `make demo` goes on from here.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
