"""What an environment serves, asked of the machine itself; changes nothing, takes no lock."""

from __future__ import annotations

from typing import Any

from model_delivery.project import Project
from model_delivery.registry.log import Event
from model_delivery.rollout.services import Service, services
from model_delivery.rollout.target import EnvironmentName, Target
from model_delivery.serving.launch import identity


def status(project: Project, environment: EnvironmentName) -> dict[str, Any]:
    """Return the state of an environment.

    Returns
    -------
    dict
        `state` is `nothing deployed`, `stopped`, `serving`, or `unhealthy` with `problems`;
        beside it releases, ports and processes, and what is unfinished.
    """
    target = Target(project, environment)
    current, intent, proxy = target.current(), target.intent(), target.proxy.process()
    running = services(target)
    problems = _problems(target, current, running) if current and (proxy or running) else []
    stopped = "stopped" if current else "nothing deployed"
    return {
        "environment": environment,
        "state": "unhealthy" if problems else "serving" if proxy and current else stopped,
        "problems": problems,
        "current": current.model_dump(mode="json") if current else None,
        "url": f"http://127.0.0.1:{target.port}",
        "proxy": proxy.pid if proxy else None,
        "services": [_service(service) for service in running],
        "installed": [event.release for event in target.installed()],
        "unfinished": intent.release if intent else None,
        "untold": len(target.moves()) - bool(intent),
    }


def _problems(target: Target, current: Event, running: list[Service]) -> list[str]:
    """Return what keeps clients from being answered by the current release."""
    mine = [service for service in running if service.digest == current.digest]
    if not any(service.process() for service in mine):
        return [f"the service of {current.release} is not running"]
    if not any(service.healthy() for service in mine):
        return [f"the service of {current.release} does not answer as itself"]
    if target.proxy.process() is None:
        return ["the proxy is not running"]
    if not target.proxy.answers():
        return [f"port {target.port} does not reach the proxy"]
    reached = identity(f"http://127.0.0.1:{target.port}")
    if reached not in [(service.digest, service.launch) for service in mine]:
        return [f"clients do not reach {current.release} (but {reached})"]
    return []


def _service(service: Service) -> dict[str, Any]:
    process = service.process()
    fields = {"digest": service.digest, "port": service.port, "healthy": service.healthy()}
    return fields | {"pid": process.pid if process else None}
