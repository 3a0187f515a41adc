"""A release that scores files: batch after batch through pipes, without a server."""

import json
import subprocess
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model_delivery.bundle.launch import (
    PATIENCE_SECONDS,
    clean_variables,
    service_environment,
    spawn,
)
from model_delivery.project import Project
from model_delivery.protocols import Floats, UserError
from model_delivery.serving import STREAM


class Scorer:
    """A release that scores batch after batch: a process in its clean environment, for a block.

    It ends with this process, however that ends: its input does. What it says is in `log`.
    """

    def __init__(self, project: Project, ship: Path, log: Path) -> None:
        if STREAM not in (ship / "service.py").read_text():
            what = f"{ship.parent.name[:12]} is a release from before `ml predict`"
            raise UserError(f"{what}; deploy one that was trained since")
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [str(service_environment(project, ship).absolute()), "service.py", STREAM]
        self.process = spawn(command, ship, clean_variables(project), log, subprocess.PIPE)
        self.log = log

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def score(self, columns: Mapping[str, pa.Array]) -> Floats:
        """Return the probability of each row, shape (n,); a UserError where it gives none."""
        head, values = list[tuple[str, str, list[str] | None]](), list[NDArray[Any]]()
        for name, column in columns.items():
            text = pa.types.is_string(column.type)
            known = column.dictionary_encode() if text else column
            places = known.indices.fill_null(-1) if text else column
            values.append(places.to_numpy(zero_copy_only=False))
            words = known.dictionary.to_pylist() if text else None
            head.append((name, values[-1].dtype.str, words))
        given, answers, rows = self.process.stdin, self.process.stdout, len(values[0])
        assert given is not None and answers is not None, "it has pipes"  # noqa: PT018
        timer = threading.Timer(PATIENCE_SECONDS, self.process.kill)
        timer.daemon = True
        timer.start()
        try:
            with suppress(BrokenPipeError):  # it ended, and gives no answer either
                given.write(json.dumps({"rows": rows, "columns": head}).encode() + b"\n")
                given.writelines(part.tobytes() for part in values)
                given.flush()
            scores = answers.read(8 * rows)
        finally:
            timer.cancel()
        if len(scores) < 8 * rows:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-8:])
            raise UserError(f"the release ended while it scored {rows} rows:\n{tail}")
        return np.frombuffer(scores)
