"""Runs a plan, {name: Stage}: commands that need each other's products, several at a time.

A stage is a command of this repo with a run folder of its own, `OUT/<name>`. It is done when the folder's config.json has the
same command and its result.json is there.
"""

import concurrent.futures
import graphlib
import json
import os
import shlex
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from . import runtime

ROOT = Path(__file__).resolve().parent.parent


class Stage(NamedTuple):
    command: list  # a script, its flags, then --out and other flags that do not change the result
    needs: list  # names of the stages whose products it reads
    turn: int  # stages of lower turns run first; the seed, unless a table says otherwise
    work: dict  # {kind of step: images}


def text(command):
    return shlex.join(["python", *command])


def identity(command):
    """A command's script and flags up to --out, sorted, since their order does not matter.

    Paths to other stages' products are cut to stage and file name.
    """
    words = shlex.split(command.partition(" --out ")[0])
    words = [os.path.join(*Path(w).parts[-2:]) if w.endswith(("supernet.pt", "result.json")) else w for w in words]
    return sorted(" ".join(words).split(" --"))


def record(plan, out, name):
    """{stage, config, result} of a stage that is done, None for any other."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):  # not there yet, or not the files of a run
        config, result = (json.loads(Path(out, name, file).read_text()) for file in ("config.json", "result.json"))
        if identity(config["command"]) == identity(text(plan[name].command)):
            return {"stage": name, "config": config, "result": result}


def shard(plan, part, parts):
    """Part number `part` of `parts`. Stages that are connected by needs stay together; the largest group is dealt first."""
    groups, shards = [], [set() for _ in range(parts)]
    for name, stage in plan.items():
        joined = [group for group in groups if not group.isdisjoint(stage.needs)]
        groups = [group for group in groups if group not in joined] + [{name}.union(*joined)]

    def images(names):
        return sum(sum(plan[name].work.values()) for name in names)

    for group in sorted(groups, key=images, reverse=True):
        min(shards, key=images).update(group)
    return {name: stage for name, stage in plan.items() if name in shards[part - 1]}


def run(plan, out, workers):
    """Runs what is not done, one stage per worker at a time. Returns {name: reason} of what is still missing.

    workers: the environment variables of each. What a stage prints goes to `OUT/<name>.log`.
    """
    missing = {name: "not run: it needs a run that failed" for name in plan if not record(plan, out, name)}
    order = graphlib.TopologicalSorter({name: [need for need in plan[name].needs if need in missing] for name in missing})
    order.prepare()
    print(f"{len(plan) - len(missing)} of {len(plan)} runs are already finished", flush=True)
    ready, free, running = [], list(workers), {}
    with concurrent.futures.ThreadPoolExecutor(len(workers)) as pool:
        try:
            while True:
                ready = sorted([*ready, *order.get_ready()], key=lambda name: plan[name].turn)
                while ready and free:
                    name, worker = ready.pop(0), free.pop()
                    log = Path(out, f"{name}.log")
                    print(f"[{name}] {text(plan[name].command)}", flush=True)
                    process = start(plan[name].command, log, worker)
                    running[pool.submit(process.wait)] = name, worker, log, process
                if not running:
                    return missing
                for ended in concurrent.futures.wait(running, return_when="FIRST_COMPLETED").done:
                    name, worker, log, _ = running.pop(ended)
                    free.append(worker)
                    if record(plan, out, name):
                        del missing[name]
                        order.done(name)  # without this, what needs it never gets ready
                    elif not ended.result():
                        other = f"'{Path(out, name)}' holds a finished run of another command, see its config.json"
                        missing[name] = f"{other}: give the flags as they were, or another --out"
                    else:
                        last_line = log.read_text(errors="replace").strip().rpartition("\n")[2]
                        missing[name] = f"exit status {ended.result()}: {last_line} (see {log})"
                    print(f"[{name}] {missing.get(name, 'finished')}", flush=True)
        finally:
            for *_, process in running.values():
                process.terminate()


def start(command, log, environment):
    """A process that ends with this one. Linux ties it to the thread that starts it: call this in the main thread."""
    with open(log, "a") as file:
        return subprocess.Popen(
            [sys.executable, os.path.join(ROOT, command[0]), *command[1:]], env={**os.environ, **environment},
            stdout=file, stderr=subprocess.STDOUT, preexec_fn=runtime.end_with_parent,
        )  # fmt: skip
