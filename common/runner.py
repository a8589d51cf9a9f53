"""Runs a plan of commands that need each other's products, several at a time. A plan is {name: Stage}.

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
from pathlib import Path
from typing import NamedTuple

from . import runtime

ROOT = Path(__file__).resolve().parent.parent


class Stage(NamedTuple):
    command: list  # a script and its flags
    needs: list = ()  # names of the stages whose products it reads
    seed: int = 0
    work: list = ()  # of (benchmark, kind of step, images)


def text(command):
    return shlex.join(["python", *command])


def identity(command):
    """The words of a command without where it runs: no device, no data root, and of a product's path only stage and file."""
    words, where = shlex.split(command), ("--device", "--data-root", "--out")
    kept = [word for i, word in enumerate(words) if word not in where and words[i - 1] not in where]
    products = ("supernet.pt", "result.json")
    return [os.path.join(*Path(word).parts[-2:]) if word.endswith(products) else word for word in kept]


def record(plan, out, name):
    """{stage, config, result} of a stage that is done, None for any other."""
    try:
        config, result = (json.loads(Path(out, name, file).read_text()) for file in ("config.json", "result.json"))
        if identity(config["command"]) == identity(text(plan[name].command)):
            return {"stage": name, "config": config, "result": result}
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there yet, or not the files of a run
    return None


def in_order(plan):
    """Names, each after what it needs, and seed after seed, so that one seed is complete before the next begins."""
    order = graphlib.TopologicalSorter({name: stage.needs for name, stage in plan.items()}).static_order()
    return sorted(order, key=lambda name: plan[name].seed)


def shard(plan, part, parts):
    """The part-th of so many parts, which need nothing of each other: connected stages stay together.

    Groups of connected stages are dealt out by the images they train on or score, the largest first, to the lightest part.
    """
    group = {name: {name} for name in plan}
    for name, stage in plan.items():
        for need in stage.needs:
            if group[need] is not group[name]:
                joined = group[need] | group[name]
                group.update(dict.fromkeys(joined, joined))
    weights = {min(names): sum(n for name in names for *_, n in plan[name].work) for names in group.values()}
    loads, dealt = [0] * parts, {}
    for first in sorted(weights, key=lambda first: (-weights[first], first)):
        dealt[first] = loads.index(min(loads))
        loads[dealt[first]] += weights[first]
    return {name: stage for name, stage in plan.items() if dealt[min(group[name])] == part - 1}


def run(plan, out, workers):
    """Runs what is not done, one stage per worker at a time. Returns {name: why} of stages that failed or lack a need.

    workers: the environment variables of each. What a stage prints goes to `OUT/<name>.log`.
    """
    order = graphlib.TopologicalSorter({name: stage.needs for name, stage in plan.items()})
    order.prepare()
    ready, free, running, failed = [], list(workers), {}, {}
    with concurrent.futures.ThreadPoolExecutor(len(workers)) as pool:
        try:
            while order.is_active():
                while names := order.get_ready():
                    for name in names:
                        lost = next((need for need in plan[name].needs if need in failed), None)
                        if lost:
                            failed[name] = f"not run: it needs {lost}"
                        elif not record(plan, out, name):
                            ready.append(name)
                            continue
                        print(f"[{name}] {failed.get(name, 'already finished')}", flush=True)
                        order.done(name)
                ready.sort(key=lambda name: plan[name].seed)
                while ready and free:
                    name, worker = ready.pop(0), free.pop()
                    print(f"[{name}] {text(plan[name].command)}", flush=True)
                    process = start(plan[name].command, os.path.join(out, f"{name}.log"), worker)
                    running[pool.submit(process.wait)] = name, process, worker
                for ended in concurrent.futures.wait(running, return_when="FIRST_COMPLETED").done:
                    name, _, worker = running.pop(ended)
                    free.append(worker)
                    order.done(name)
                    if not record(plan, out, name):
                        failed[name] = reason(ended.result(), os.path.join(out, f"{name}.log"))
                    print(f"[{name}] {failed.get(name, 'finished')}", flush=True)
        finally:
            for _, process, _ in running.values():
                process.terminate()
    return failed


def start(command, log, environment):
    """A process that is ended with this one, however that ends. Linux ties it to the thread that starts it: call this in
    the main thread."""
    script, *argv = command
    with open(log, "a") as file:
        return subprocess.Popen(
            [sys.executable, os.path.join(ROOT, script), *argv], env={**os.environ, **environment},
            stdout=file, stderr=subprocess.STDOUT, preexec_fn=runtime.end_with_parent,
        )  # fmt: skip


def reason(status, log):
    if status == 0:
        return "failed: its folder holds a run of another command"
    lines = Path(log).read_text(errors="replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "")
    return f"failed with exit status {status}: {last} (see {log})"
