"""Print what to do next. No network, no git, nothing changed: updates run this again, twice."""

import json

# fmt: off
PROJECT = json.loads(r'''<< cookiecutter.project | tojson >>''')
# fmt: on

print(f"""
{PROJECT} is ready. Next:

  cd {PROJECT}
  git init --initial-branch main
  uv sync                      # makes uv.lock, which belongs to the first commit
  git add . && git commit -m "Start from the template"
  uv run ml doctor             # says what this machine lacks, and the command that fixes it
  uv run ml ship               # data, training, gates, package, production: about two minutes

No uv yet? `pipx install uv` (on Debian after `sudo apt-get install pipx`), or see
https://docs.astral.sh/uv/; `make` in a clone of the template keeps one in its .tools/bin.
""")
