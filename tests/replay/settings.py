"""What the replay's project sets otherwise than a new project does, and why."""

from __future__ import annotations

from pathlib import Path

JANUARY = "a model of 25 days of January is weak, and is the first that there is"
YOUNG = "what is learned from two months answers otherwise than what is from January, as it should"
QUICK = "a rollout takes seconds here"

SETTINGS = (
    ("gates", "  roc_auc: { min: 0.70,", "  roc_auc: { min: 0.60,", JANUARY),
    ("gates", "  segment_roc_auc: { min: 0.62,", "  segment_roc_auc: { min: 0.55,", JANUARY),
    (
        "gates",
        "    WeakSegmentsPerformance: { min: 0.7, outcome: warn } # ROC AUC relative to all rows\n",
        "",
        "it only warns, and ends where nothing predicts a model's errors",
    ),
    ("gates", "  rounds: 8\n", "  rounds: 4\n", QUICK),
    ("delivery", "    port: 3000\n", "    port: 3031\n", "`make demo` may be there"),
    (
        "delivery",
        "      - { weight: 0.1, seconds: 30 }\n"
        "      - { weight: 0.25, seconds: 30 }\n"
        "      - { weight: 0.5, seconds: 60 }\n",
        "      - { weight: 0.5, seconds: 5 }\n",
        QUICK,
    ),
    (
        "delivery",
        "  score_distance: { max: 0.25, outcome: stop }\n",
        "  score_distance: { max: 0.6, outcome: stop }\n",
        YOUNG,
    ),
)
"""File of `config/`, what stands there, what shall stand there, and the reason."""
PORT = 3031


def change(project: Path) -> None:
    """Change the project's settings.

    Raises
    ------
    ValueError
        When a line is not there exactly once: the template has changed since.
    """
    for name, old, new, _ in SETTINGS:
        path = project / "config" / f"{name}.yaml"
        text = path.read_text(encoding="utf-8")
        if text.count(old) != 1:
            raise ValueError(f"{path}: {text.count(old)} times, not once: {old!r}")
        path.write_text(text.replace(old, new), encoding="utf-8")


def listed() -> list[tuple[str, str, str, str]]:
    """Return each setting as file, value before, value now, reason."""
    short = [[" ".join(part.split()) for part in (old, new)] for _, old, new, _ in SETTINGS]
    pairs = zip(SETTINGS, short, strict=True)
    return [(f"{name}.yaml", old, new, why) for (name, _, _, why), (old, new) in pairs]
