"""All stages in order, as far as the gates allow."""

from __future__ import annotations

from model_delivery.cli import rollout
from model_delivery.cli.output import progress
from model_delivery.cli.stages import GATES, Run, gate, train
from model_delivery.report.verdict import Outcome, Verdict, allows_promotion, decide

STAGES = ("data", "train", "model", "package", "api", "load", "deploy")


def ship_until(run: Run, last: str) -> list[Verdict]:
    """Run the stages up to `last` and return their verdicts.

    A gate that does not allow promotion ends it: bad data trains nothing, a bad model is not
    packaged, and nothing of either is deployed.
    """
    verdicts: list[Verdict] = []
    for stage in STAGES[: STAGES.index(last) + 1]:
        if stage in GATES:
            verdicts.append(gate(run, stage, fresh=True))
            _say(run, verdicts[-1])
            if not allows_promotion(verdicts[-1].outcome, run.event):
                break
        elif stage == "train":
            train(run)
        else:
            rollout.deploy_stage(run.project, run.event)
    return verdicts


def _say(run: Run, verdict: Verdict) -> None:
    outcome = decide(verdict.outcome, run.event)
    colour = {Outcome.PASS: "green", Outcome.WARN: "yellow"}.get(outcome, "red")
    passed = sum(check.outcome is Outcome.PASS for check in verdict.checks)
    counted = f"{passed} of {len(verdict.checks)} checks pass"
    progress.print(f"          [{colour}]{outcome}[/]  {verdict.gate}: {counted}")
