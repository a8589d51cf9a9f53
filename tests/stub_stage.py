"""A stage that only pretends to work, for test_reproduce.py: stub_stage.py {ok,slow,hang,fail,exit} --out FOLDER."""

import json
import os
import shlex
import sys
import time
from pathlib import Path

how, out = sys.argv[1], Path(sys.argv[3])
with open(out.parent / "ran", "a") as file:
    file.write(f"{out.name}\n")
print(os.getpid(), flush=True)
time.sleep({"slow": 1, "hang": 60}.get(how, 0))
if how == "fail":
    print("error: no such luck")
if how in ("fail", "exit"):
    sys.exit(3 if how == "fail" else 0)
out.mkdir(parents=True, exist_ok=True)
(out / "config.json").write_text(json.dumps({"command": shlex.join(["python", *sys.argv])}))
(out / "result.json").write_text("{}")
