"""Reads what act prints with --json."""

from __future__ import annotations

import json
from typing import Any

from .alone import ENTER
from .results import Step
from .workflow import Work

_Message = dict[str, Any]
_ANNOTATIONS = ("error", "warning", "notice")
_TROUBLE = ("Skipping unsupported platform", "Error", "error")


def read(text: str) -> list[_Message]:
    """Return the messages of a log; lines that are none, act's own words, as `msg` alone."""
    messages = []
    for line in text.splitlines():
        try:
            messages.append(json.loads(line))
        except ValueError:
            messages.append({"msg": line})
    return messages


def of(messages: list[_Message], job: str, work: Work) -> list[_Message]:
    """Return what was said of a job, or of the one that it calls: `caller/workflow/job`."""
    return [
        m
        for m in messages
        if m.get("jobID") == work.id
        and (work.called is None or str(m.get("job")).startswith(f"{job}/"))
        and m.get("stepID", [""])[0] != ENTER
    ]


def steps(messages: list[_Message]) -> tuple[Step, ...]:
    """Return the steps of a job that were reached, without those inside an action."""
    return tuple(
        Step(m["step"], m["stepResult"])
        for m in messages
        if m.get("stage") == "Main" and "stepResult" in m and len(m.get("stepID", ())) == 1
    )


def printed(messages: list[_Message]) -> str:
    """Return what the steps of a job printed, annotations (`::error::…`) too."""
    lines = [
        str(m.get("raw", m["msg"]))
        for m in messages
        if m.get("raw_output") or m.get("command") in _ANNOTATIONS
    ]
    return "".join(line.rstrip("\r\n") + "\n" for line in lines)


def summary(messages: list[_Message]) -> str:
    """Return the Markdown that a job wrote to its summary."""
    return "".join(m["content"] for m in messages if m.get("command") == "summary")


def problems(messages: list[_Message]) -> str:
    """Return act's own complaints."""
    said = [str(m.get("msg", "")) for m in messages if not m.get("raw_output")]
    return "\n".join(line for line in said if any(word in line for word in _TROUBLE))
