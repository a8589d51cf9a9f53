"""A stage that only pretends to work, for test_reproduce.py: stub_stage.py {ok,meet,hang,fail} --out FOLDER."""

import json
import os
import shlex
import sys
import time
from pathlib import Path

how, out = sys.argv[1], Path(sys.argv[3])
if (out / "result.json").exists():
    sys.exit()
with open(out.parent / "ran", "a") as file:
    file.write(f"{out.name}\n")
print(os.getpid(), flush=True)
if how == "hang":
    time.sleep(60)
while how == "meet" and len((out.parent / "ran").read_text().split()) < 2:
    time.sleep(0.01)
if how == "fail":
    print("error: no such luck")
    sys.exit(3)
out.mkdir(parents=True, exist_ok=True)
(out / "config.json").write_text(json.dumps({"command": shlex.join(["python", *sys.argv])}))
(out / "result.json").write_text("{}")
