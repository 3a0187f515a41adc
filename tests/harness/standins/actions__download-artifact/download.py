"""Stands in for actions/download-artifact: one artifact of this run, by its name."""

import os
import shutil
import sys
from pathlib import Path

source = Path(os.environ["STANDIN_RUN"]) / "artifacts" / os.environ["NAME"]
if not source.is_dir():
    sys.exit(f"::error::no artifact {source.name} in this run")
shutil.copytree(source, os.environ["DESTINATION"], dirs_exist_ok=True)
