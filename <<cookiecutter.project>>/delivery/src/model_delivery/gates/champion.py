"""The champion's scores on the candidate's test rows: the same rows, judged side by side."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq

from model_delivery.bundle.candidate import Candidate
from model_delivery.bundle.score import score_cleanly, write_columns
from model_delivery.errors import UserError
from model_delivery.files import temporary_folder
from model_delivery.project import Project
from model_delivery.protocols import Floats
from model_delivery.training.snapshot import columns_of

FEWEST_ROWS = 1_000


def champion_scores(
    project: Project, candidate: Candidate, champion: Candidate | None
) -> Floats | None:
    """Return the champion's scores, not-a-number on rows that it may have been trained on.

    Returns
    -------
    numpy.ndarray or None
        Shape (n test rows,); None where there is no champion, or it is the candidate itself.

    Raises
    ------
    UserError
        When fewer than 1,000 rows are later than both training spans.
    """
    if champion is None or champion.digest == candidate.digest:
        return None
    table, contract = pq.read_table(candidate.test_path), project.contract
    learned_until = np.datetime64(champion.lineage["data"]["spans"]["train"][1])
    later = table.column(contract.time).to_numpy() > learned_until
    if later.sum() < FEWEST_ROWS:
        raise UserError(
            f"only {later.sum():,} test rows are later than what the champion {champion.short} "
            f"was trained on (until {learned_until}); extract newer data: `ml data --as-of DAY`"
        )
    columns = {k: v for k, v in columns_of(table).items() if k in contract.inputs}
    with temporary_folder(project.work / "scores") as folder:
        rows = folder / "rows.npz"
        write_columns(rows, columns)
        scores = score_cleanly(project, champion.ship, rows)
    return np.where(later, scores, np.nan)
