"""An agent in the place of the real one, for tests of who asks: it loads no torch.

    python agent_in_place.py NAME FOLDER

It answers as a healthy host. FOLDER/NAME.json may say otherwise: by the name of a question, what
to add to its answer, "die" or "hang", or a list of these, one each time that it is asked.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

DEVICE = {"name": "EPYC", "kind": "cpu", "matmul": None, "differs": False, "error": ""}
ANSWERS: dict[str, dict[str, Any]] = {
    "counters": {"counters": []},
    "disk": {"rate": 2e9},
    "ports": {"ports": [1]},
    "start": {"devices": [DEVICE]},
    "matmul": {"devices": [{**DEVICE, "matmul": 1e11}]},
    "pair": {"devices": [{"rate": 4e9}]},
    "reduce": {"devices": [{"rate": 3e9}]},
}


def main() -> None:
    """Answer as told."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    changes = folder / f"{name}.json"
    other = json.loads(changes.read_text(encoding="ascii")) if changes.exists() else {}
    with (folder / f"{name}.asked").open("a", encoding="ascii") as asked:
        for line in sys.stdin:
            asked.write(line)
            asked.flush()
            question = json.loads(line)
            what = question.get("work", {}).get("name", question["do"])
            change = other.get(what, {})
            if isinstance(change, list):
                change = change.pop(0) if change else {}
            if change == "die":
                sys.exit("it was cut off")
            if change != "hang":
                print(json.dumps({**ANSWERS[what], **change}), flush=True)


if __name__ == "__main__":
    main()
