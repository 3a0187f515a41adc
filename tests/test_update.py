"""A project made at any release takes the present template over, and keeps what its owner wrote."""

from __future__ import annotations

import difflib
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.baking import ROOT, BakedProject, Baker, Done, template

LINES = (ROOT / "tests" / "releases.txt").read_text(encoding="utf-8").splitlines()
RELEASES = dict(line.split(" ") for line in LINES if not line.startswith("#"))
TAGS = list(RELEASES)
OLDEST, NEWEST = TAGS[0], TAGS[-1]
PAGE = (ROOT / "docs" / "updates.md").read_text(encoding="utf-8")

ANSWERS: dict[str, dict[str, str]] = {
    "defaults": {},
    "own": {
        "project": "house-prices",
        "package": "prices",
        "description": """Say "when", O'Neil: C:\\new, 100 %, {{x}} {% y %}""",
        "author": 'Zoë "Zed" Söhne & Co.',
        "github_owner": "octo-org",
        "licence": "MIT",
    },
}
# Every release with the defaults; own answers with the newest one, the others in `make test-all`.
CASES = [
    pytest.param(
        release,
        answers,
        marks=[] if answers == "defaults" or release == NEWEST else pytest.mark.exhaustive,
    )
    for release in RELEASES
    for answers in ANSWERS
]

# What a user edits: a file, a text that stands in it once, and what comes in its place.
EDITED = [
    ("config/model.yaml", "learning_rate: 0.05", "learning_rate: 0.04"),
    ("config/gates.yaml", "  roc_auc: { min: 0.70,", "  roc_auc: { min: 0.71,"),
    ("src/PACKAGE/features.py", '"weekday", "minute_of_day"', '"weekday", "minute_of_day", "hour"'),
    ("src/PACKAGE/features.py", "* t.hour + t.minute) for", "* t.hour + t.minute, t.hour) for"),
    ("README.md", "## Start\n", "## Start\n\nAsk our team before you move a limit.\n"),
]  # fmt: skip
# And what a user adds.
ADDED = {
    "tests/test_own.py": '"""A test of our own."""\n\nfrom PACKAGE.features import CLOCK\n\n\n'
    'def test_the_hour_is_a_feature() -> None:\n    assert "hour" in CLOCK\n',
    ".github/workflows/own.yml": "name: Own\non: workflow_dispatch\npermissions: {}\njobs:\n"
    "  hello:\n    runs-on: ubuntu-24.04\n    timeout-minutes: 5\n    steps:\n"
    "      - name: Say hello\n        run: echo hello\n",
}
# Not of the template: git's, cruft's, and what `uv sync` makes.
NOT_OURS = {".git", ".cruft.json", ".venv", "uv.lock"}

# In 0.1.0 all of production stood on one line, and the machinery had a test that is gone.
PORT = ("config/delivery.yaml", "port: 3000", "port: 3300")
GONE = "delivery/tests/test_deepchecks.py"


class User:
    """Runs git and cruft as a user does, with a home folder and an identity of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.baker = Baker(folder)
        self.template = folder / "template"
        who = {
            f"GIT_{who}_{what}": "tester@example.org"
            for who in ("AUTHOR", "COMMITTER")
            for what in ("NAME", "EMAIL")
        }
        self.env = who | {"HOME": str(folder), "TMPDIR": str(self.baker.temporary)}
        self._made: dict[str, BakedProject] = {}
        # The history up to here, and on it the files as they are now, committed or not.
        clone = ("git", "clone", "--quiet", "--no-checkout", str(ROOT), str(self.template))
        BakedProject(ROOT).run(*clone)
        shutil.copytree(template(), self.template, dirs_exist_ok=True)
        self.commit(self.template)

    def run(self, where: Path, *command: str, check: bool = True) -> Done:
        """Run a command in a folder."""
        return BakedProject(where).run(*command, env=self.env, check=check)

    def cruft(self, where: Path, *arguments: str, check: bool = True) -> Done:
        """Run cruft in a folder."""
        return self.run(where, sys.executable, "-m", "cruft", *arguments, check=check)

    def commit(self, where: Path) -> None:
        """Commit whatever is in a folder."""
        self.run(where, "git", "add", "--all")
        self.run(where, "git", "commit", "--quiet", "--allow-empty", "--message", "A step")

    def update(self, project: BakedProject, *options: str) -> str:
        """Update a project to the present template; return what cruft said."""
        done = self.cruft(project.path, "update", "--skip-apply-ask", *options)
        return done.stdout + done.stderr

    def fresh(self, answers: str) -> BakedProject:
        """Return a copy of a render of the present template by plain cookiecutter."""
        if answers not in self._made:
            self._made[answers] = self.baker.bake(**ANSWERS[answers])
        return self._copy(self._made[answers])

    def create(self, release: str, answers: str = "defaults") -> BakedProject:
        """Return a copy of a project that cruft made at a release, with one commit."""
        case = f"{release} {answers}"
        if case not in self._made:
            has = ("git", "cat-file", "-e", RELEASES[release])
            if self.run(self.template, *has, check=False).returncode:
                pytest.fail(f"this clone lacks the commit of {release}: git fetch --unshallow")
            output = self.folder / "created" / case
            options = ["--no-input", "--output-dir", str(output), "--checkout", RELEASES[release]]
            context = json.dumps(ANSWERS[answers])
            self.cruft(
                self.folder, "create", *options, "--extra-context", context, str(self.template)
            )
            (path,) = output.iterdir()
            self.run(path, "git", "init", "--quiet", "--initial-branch", "main")
            self.commit(path)
            self._made[case] = BakedProject(path)
        return self._copy(self._made[case])

    def _copy(self, project: BakedProject) -> BakedProject:
        copies = self.folder / "copies"
        copies.mkdir(exist_ok=True)
        path = copies / str(len(os.listdir(copies))) / project.path.name
        shutil.copytree(project.path, path)
        return BakedProject(path)


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> User:
    """Return a user who has the template's repository at hand."""
    return User(tmp_path_factory.mktemp("user"))


def replace(project: BakedProject, name: str, old: str, new: str) -> None:
    """Replace in a file a text that stands in it exactly once."""
    text = project.text(name)
    assert text.count(old) == 1, f"{name} has no longer one {old!r}: take another edit"
    (project.path / name).write_text(text.replace(old, new), encoding="utf-8")


def edit(project: BakedProject) -> BakedProject:
    """Edit a project as its owner does, and return it."""
    for name, old, new in EDITED:
        replace(project, name.replace("PACKAGE", project.package), old, new)
    for name, text in ADDED.items():
        assert not (project.path / name).exists(), name
        (project.path / name).write_text(text.replace("PACKAGE", project.package))
    return project


def contents(project: BakedProject) -> dict[str, str]:
    """Return the text of each file of a project, tracked or not."""
    names = (file.relative_to(project.path) for file in project.path.rglob("*") if file.is_file())
    return {str(name): project.text(str(name)) for name in names if name.parts[0] not in NOT_OURS}


def differences(project: BakedProject, wanted: BakedProject) -> dict[str, str]:
    """Return for each file that differs, is missing or is too much, in what it does."""
    right, left = contents(wanted), contents(project)
    shown = {}
    for name in sorted(right.keys() | left.keys()):
        if right.get(name) != left.get(name):
            lines, ours = (side.get(name, "(no file)").splitlines() for side in (right, left))
            shown[name] = "\n".join(difflib.unified_diff(lines, ours, "wanted", "is", lineterm=""))
    return shown


def unresolved(project: BakedProject) -> list[str]:
    """Return the files that an update left for hands: rejected lines, conflict markers."""
    return sorted(
        name
        for name, text in contents(project).items()
        if name.endswith(".rej")
        or any(line.startswith(("<<<<<<<", ">>>>>>>")) for line in text.splitlines())
    )


def answers_of(project: BakedProject) -> dict[str, str]:
    """Return the answers that cruft wrote down, without cookiecutter's private ones."""
    context = json.loads(project.text(".cruft.json"))["context"]["cookiecutter"]
    return {name: value for name, value in context.items() if not name.startswith("_")}


@pytest.mark.parametrize(("release", "answers"), CASES)
def test_an_update_is_a_fresh_render_with_the_users_edits(
    user: User, release: str, answers: str
) -> None:
    project = edit(user.create(release, answers))
    user.commit(project.path)
    given = answers_of(project)
    assert given.items() >= ANSWERS[answers].items()

    user.update(project)
    assert unresolved(project) == []
    assert differences(project, edit(user.fresh(answers))) == {}
    assert answers_of(project) == given
    head = user.run(user.template, "git", "rev-parse", "HEAD").stdout.strip()
    assert json.loads(project.text(".cruft.json"))["commit"] == head
    user.cruft(project.path, "check")

    user.commit(project.path)
    user.update(project)
    assert user.run(project.path, "git", "status", "--porcelain").stdout == ""


def test_every_lost_edit_is_found(user: User) -> None:
    wanted, plain = edit(user.fresh("defaults")), user.fresh("defaults")
    changed = {name.replace("PACKAGE", plain.package) for name, *_ in EDITED}
    assert differences(plain, wanted).keys() == changed | ADDED.keys()
    assert (
        "-learning_rate: 0.04\n+learning_rate: 0.05"
        in differences(plain, wanted)["config/model.yaml"]
    )


def test_a_change_that_is_not_taken_over_is_found(user: User) -> None:
    """A skipped update leaves every file as it was, and cruft calls it up to date all the same."""
    project = edit(user.create(OLDEST))
    user.commit(project.path)
    before = user.cruft(project.path, "check", check=False)
    assert before.returncode == 1, before.stdout
    user.update(project, "--skip-update")
    user.cruft(project.path, "check")
    missed = differences(project, edit(user.fresh("defaults")))
    assert {"Makefile", "config/delivery.yaml", GONE} <= missed.keys()
    assert not missed.keys() & {"config/model.yaml", *ADDED}


def test_without_the_decoy_folder_cruft_refuses_the_template(user: User, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    user.run(tmp_path, "git", "clone", "--quiet", str(user.template), str(bare))
    create = ("create", "--no-input", "--output-dir", str(tmp_path / "out"), str(bare))
    user.cruft(tmp_path, *create)
    shutil.rmtree(tmp_path / "out")
    user.run(bare, "git", "rm", "--quiet", "-r", "{{cookiecutter.cruft}}")
    user.commit(bare)
    done = user.cruft(tmp_path, *create, check=False)
    assert done.returncode
    assert "UnableToFindCookiecutterTemplate" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_project_of_plain_cookiecutter_is_linked_and_updated(user: User, tmp_path: Path) -> None:
    commit, answers = RELEASES[OLDEST], ANSWERS["own"]
    user.run(
        tmp_path,
        *(sys.executable, "-m", "cookiecutter", "--no-input", "--checkout", commit),
        f"git+file://{user.template}",
        *(f"{name}={value}" for name, value in answers.items()),
    )
    project = BakedProject(tmp_path / answers["project"])
    user.run(project.path, "git", "init", "--quiet")
    user.commit(project.path)
    given = ("--no-input", "--checkout", commit, "--extra-context", json.dumps(answers))
    user.cruft(project.path, "link", *given, str(user.template))
    user.cruft(project.path, "diff", "--exit-code")  # ends with 1 where anything differs
    edit(project)
    user.commit(project.path)
    user.update(project)
    assert unresolved(project) == []
    assert differences(project, edit(user.fresh("own"))) == {}


def test_a_conflict_is_marked_in_its_file_and_settled_there(user: User) -> None:
    """Cruft ends with 0 and calls it good work: what tells is git."""
    project = edit(user.create(OLDEST))
    replace(project, *PORT)
    user.commit(project.path)
    said = user.update(project)
    assert "Good work!" in said
    assert f"Applied patch to '{PORT[0]}' with conflicts." in said
    assert unresolved(project) == [PORT[0]]
    assert "3300" in project.text(PORT[0]), "an edit is never lost"
    user.cruft(project.path, "check")
    found = user.run(project.path, "git", "diff", "--check", check=False)
    assert found.returncode
    assert f"{PORT[0]}:3: leftover conflict marker" in found.stdout

    wanted = edit(user.fresh("defaults"))
    assert differences(project, wanted).keys() == {PORT[0]}
    user.run(project.path, "git", "checkout", "--theirs", PORT[0])
    for side in (project, wanted):
        replace(side, *PORT)
    assert differences(project, wanted) == {}


def test_edits_in_the_first_commit_can_only_be_rejected(user: User) -> None:
    """Git merges with the file as it was rendered, which that history does not hold."""
    project = edit(user.create(OLDEST))
    replace(project, *PORT)
    shutil.rmtree(project.path / ".git")
    user.run(project.path, "git", "init", "--quiet")
    user.commit(project.path)
    said = user.update(project)
    assert "repository lacks the necessary blob" in said
    assert unresolved(project) == [f"{PORT[0]}.rej"]
    wanted = edit(user.fresh("defaults"))
    assert differences(project, wanted).keys() == {PORT[0], f"{PORT[0]}.rej"}
    assert "+  test: { target: host, port: 3010 }" in project.text(f"{PORT[0]}.rej")
    status = user.run(project.path, "git", "status", "--short").stdout
    assert f"?? {PORT[0]}.rej" in status


def test_an_edited_file_that_the_template_removed_stays(user: User) -> None:
    """Then git merges nothing: a conflict elsewhere in the same update is rejected lines."""
    project = edit(user.create(OLDEST))
    (project.path / GONE).write_text(mine := project.text(GONE) + "# mine\n")
    replace(project, *PORT)
    user.commit(project.path)
    said = user.update(project)
    assert f"error: {GONE}: patch does not apply" in said
    assert project.text(GONE) == mine
    assert unresolved(project) == [f"{PORT[0]}.rej"]
    wanted = edit(user.fresh("defaults"))
    assert differences(project, wanted).keys() == {GONE, PORT[0], f"{PORT[0]}.rej"}


def test_own_changes_of_the_machinery_are_taken_back_by_one_line(user: User) -> None:
    line = "uvx cruft diff | git apply --include='delivery/*'"
    assert line in PAGE
    project = edit(user.create(OLDEST))
    for name in (GONE, "delivery/src/model_delivery/registry.py", "delivery/pyproject.toml"):
        (project.path / name).write_text("# mine\n" + project.text(name))
    user.commit(project.path)
    user.run(project.path, "sh", "-c", line.replace("uvx cruft", f"'{sys.executable}' -m cruft"))
    user.commit(project.path)
    user.update(project)
    assert unresolved(project) == []
    assert differences(project, edit(user.fresh("defaults"))) == {}


def test_what_a_project_skips_or_deleted_is_left_alone(user: User) -> None:
    lines = '[tool.cruft]\nskip = ["src", "tests", "README.md"]\n'
    assert lines in PAGE
    project = user.create(OLDEST)
    readme = project.text("README.md")
    (project.path / "Makefile").unlink()
    with (project.path / "pyproject.toml").open("a") as file:
        file.write(f"\n{lines}")
    user.commit(project.path)
    user.update(project)
    left = differences(project, user.fresh("defaults"))
    skipped = {name for name in left if name.startswith(("src/", "tests/"))}
    assert left.keys() - skipped == {"Makefile", "pyproject.toml", "README.md"}
    assert project.text("README.md") == readme
    assert not (project.path / "Makefile").exists()


@pytest.mark.exhaustive
def test_an_updated_project_is_green(user: User) -> None:
    """With the commands of its README, and the lock file that it had before."""
    project = user.create(OLDEST, "own")
    project.run("uv", "sync", "--quiet")
    user.commit(edit(project).path)
    user.update(project)
    assert unresolved(project) == []
    project.run("uv", "sync", "--quiet")
    for target in ("lint", "types", "test"):
        project.run("make", target)
