"""Runs the commands of examples.md and keeps the tables that they print, with the time they took, in docs/examples/.

python docs/run_examples.py            # all of them, one after the other
python docs/run_examples.py topics     # those that write to runs/topics
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

DOCS = Path(__file__).parent
COMMAND = re.compile(r"^```bash\n((?:python|accelerate) .*?--output_dir runs/(\w+).*?)```$", re.M | re.S)
TABLE = re.compile(r"^\| optimizer \|.*(?:\n\|.*)*", re.M)


def main(wanted: list[str]) -> None:
    commands = {name: command for command, name in COMMAND.findall((DOCS / "examples.md").read_text(encoding="utf-8"))}
    (DOCS / "examples").mkdir(exist_ok=True)
    for name in wanted or commands:
        print(f"{name} …", flush=True)
        shutil.rmtree(DOCS.parent / "runs" / name, ignore_errors=True)  # or it would go on from there
        shown = run(commands[name])
        (DOCS / "examples" / f"{name}.md").write_text(f"{shown}\n", encoding="utf-8")
        print(shown, flush=True)


def run(command: str) -> str:
    """The table that a command prints and how long it took, as Markdown."""
    words = shlex.split(command.replace("\\\n", " "))
    start = time.monotonic()
    done = subprocess.run(
        [str(Path(sys.executable).with_name(words[0])), *words[1:]], capture_output=True, text=True, cwd=DOCS.parent
    )
    minutes, seconds = divmod(round(time.monotonic() - start), 60)
    if done.returncode:
        sys.exit(f"{command}\nended with {done.returncode}:\n{done.stderr}")
    tables = TABLE.findall(done.stdout)
    return "\n\n".join([*tables, f"{minutes}:{seconds:02} minutes in all."])


if __name__ == "__main__":
    main(sys.argv[1:])
