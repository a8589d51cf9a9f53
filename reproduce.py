"""Run the paper's experiments as a plan of the scripts' own commands, and put what comes out in one table.

    python reproduce.py quick                                             # a few minutes on two CPU cores, nothing to download
    python reproduce.py quick --source data/cifar10 --target data/tinyimagenet100 --out runs/real
    python reproduce.py quick --dry-run                                   # print the commands only

`quick` is the main job at a small scale: one super-net on the source; P0, P1, P2 adapted from it and P3 trained on the
long-tailed target; four searches; four sub-nets from scratch. Every stage is a run folder, so the same command again goes
on where it stopped. Products in --out: report.md, report.json and one log a stage.
"""

import graphlib
import json
import os
import shlex
import subprocess
import sys
import threading
import time

from common import data, flags, runtime, spaces

PROCEDURES = ("P0", "P1", "P2", "P3")


def parse_args(argv=None):
    parser = runtime.Parser(__doc__)
    parser.add_argument("plan", choices=("quick",), help="which runs")
    parser.add_argument("--source", default="synthetic10", help="balanced dataset or folder (default synthetic10)")
    parser.add_argument("--target", default="synthetic100", help="dataset or folder to be long-tailed (default synthetic100)")
    parser.add_argument("--imbalance", type=float, default=100, help="of the target (default 100)")
    parser.add_argument("--space", choices=spaces.SPACES, default="nats", help="search space (default nats)")
    parser.add_argument("--channels", type=int, default=8, help="(default 8)")
    parser.add_argument("--cells", type=int, default=1, help="nats: a stage; darts: in all (default 1)")
    parser.add_argument("--source-epochs", type=int, default=4, help="of the source super-net (default 4)")
    parser.add_argument("--adapt-epochs", type=int, default=2, help="of P1 and P2 (default 2)")
    parser.add_argument("--target-epochs", type=int, default=6, help="of P3 (default 6)")
    parser.add_argument("--subnet-epochs", type=int, default=4, help="of the sub-nets (default 4)")
    parser.add_argument("--warmup", type=int, default=1, help="warm-up epochs when training from scratch (default 1)")
    parser.add_argument("--generations", type=int, default=4, help="of each search (default 4)")
    parser.add_argument("--population", type=int, default=10, help="of each search (default 10)")
    parser.add_argument(
        "--val-images", type=int, default=1000,
        help="hold out about so many training images, the same number a class, to search on; 0: the test split (default 1000)",
    )  # fmt: skip
    parser.add_argument("--bn-images", type=int, default=500, help="training images for BN statistics (default 500)")
    parser.add_argument("--seed", type=int, default=0, help="(default 0)")
    parser.add_argument("--device", default="auto", help="(default auto)")
    parser.add_argument("--data-root", default="data", help="where CIFAR is kept or downloaded to (default data)")
    parser.add_argument("--out", default="runs/quick", help="folder of all runs (default runs/quick)")
    parser.add_argument(
        "--jobs", type=int, default=min(2, os.cpu_count()),
        help="stages side by side, with a share of the CPU cores each (default 2)",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="print the commands in order, and run none")
    args = parser.parse_args(argv)
    flags.check(args)
    return args


def plan_quick(args):
    """{stage: (command, stages it needs)}, in an order that can be run."""

    def hold_out(dataset):
        with runtime.users_mistake():
            return -(-args.val_images // data.num_classes(dataset))

    def out(stage):
        return os.path.join(args.out, stage)

    shape = ["--space", args.space, "--channels", args.channels, "--cells", args.cells]
    source = ["--dataset", args.source, "--imbalance", 1, "--val-per-class", hold_out(args.source)]
    target = ["--dataset", args.target, "--imbalance", args.imbalance, "--val-per-class", hold_out(args.target)]
    scratch = ["--warmup", args.warmup]
    search = ["--generations", args.generations, "--population", args.population, "--bn-images", args.bn_images]
    search += ["--crossovers", args.population // 2, "--mutations", args.population // 2]

    stages = {
        "source": ("train_supernet.py", *shape, *source, *scratch, "--epochs", args.source_epochs),
        "P3": ("train_supernet.py", *shape, *target, *scratch, "--epochs", args.target_epochs),
    }
    needs = {"source": [], "P3": []}
    for p in ("P0", "P1", "P2"):
        supernet = os.path.join(out("source"), "supernet.pt")
        epochs = [] if p == "P0" else ["--epochs", args.adapt_epochs]
        stages[p] = ("adapt.py", "--procedure", p, "--supernet", supernet, *target, *epochs)
        needs[p] = ["source"]
    for p in PROCEDURES:
        stages[f"search_{p}"] = ("search.py", "--supernet", os.path.join(out(p), "supernet.pt"), *search)
        needs[f"search_{p}"] = [p]
        best = os.path.join(out(f"search_{p}"), "result.json")
        subnet = ["--channels", args.channels, "--cells", args.cells]
        stages[f"retrain_{p}"] = ("retrain.py", "--arch", best, *subnet, *target, *scratch, "--epochs", args.subnet_epochs)
        needs[f"retrain_{p}"] = [f"search_{p}"]
    common = ["--seed", args.seed, "--device", args.device, "--data-root", args.data_root]
    return {s: ([str(w) for w in (*command, *common, "--out", out(s))], needs[s]) for s, command in stages.items()}


def run(stages, args):
    """Runs what is not finished, dependencies first, `--jobs` at a time. UserError if a stage says so; SystemExit(1) if one
    fails otherwise."""
    order = graphlib.TopologicalSorter({stage: needs for stage, (_, needs) in stages.items()})
    order.prepare()
    environment = {"OMP_NUM_THREADS": str(max(1, os.cpu_count() // args.jobs)), **os.environ}
    ready, running, done = [], {}, 0
    try:
        while order.is_active():
            ready += order.get_ready()
            while ready and len(running) < args.jobs:
                stage = ready.pop(0)
                running[stage] = start(stage, stages[stage][0], args, environment)
            time.sleep(0.1)
            for stage, (process, relay) in list(running.items()):
                if process.poll() is not None:
                    relay.join()
                    del running[stage]
                    if process.returncode:
                        stopped(stage, process.returncode, args)
                    order.done(stage)
                    done += 1
                    print(f"[{stage}] finished: {done} of {len(stages)} stages", flush=True)
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.wait()


def stopped(stage, status, args):
    log = os.path.join(args.out, f"{stage}.log")
    with open(log) as file:
        last = file.read().strip().rsplit("\n", 1)[-1]
    if status == 2:
        raise runtime.UserError(f"{stage}: {last.removeprefix('error: ')}")
    raise SystemExit(f"error: the stage {stage} failed ({last}), see {log}; the same command goes on from what is done")


def start(stage, command, args, environment):
    """(process, thread that copies what it prints to the screen and to its log)."""
    print(f"[{stage}] python {shlex.join(command)}", flush=True)
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), command[0])
    process = subprocess.Popen(
        [sys.executable, script, *command[1:]], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip

    def relay():
        with open(os.path.join(args.out, f"{stage}.log"), "a") as log:
            for line in process.stdout:
                log.write(line)
                print(f"[{stage}] {line}", end="", flush=True)

    thread = threading.Thread(target=relay)
    thread.start()
    return process, thread


def report(args):
    """The results as (rows, Markdown): a row a procedure."""

    def result(stage):
        with open(os.path.join(args.out, stage, "result.json")) as file:
            return json.load(file)

    p1 = result("P1")["seconds"]
    rows = []
    for p in PROCEDURES:
        searched, subnet, seconds = result(f"search_{p}")["best"], result(f"retrain_{p}"), result(p)["seconds"]
        row = {"procedure": p, "seconds": seconds, "cost": seconds / p1, "searched": searched["accuracy"]}
        rows.append(row | subnet["accuracy"] | {"mmacs": subnet["mmacs"], "arch": subnet["arch"]})

    def cell(value, form):
        return "-" if value is None else format(value, form)

    head = ("", "adapting, s", "cost / P1", "searched, %", "sub-net all, %", "many", "medium", "few", "MMACs")
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        searched = cell(row["searched"], ".2f") + (" (on the source)" if row["procedure"] == "P0" else "")
        cells = [row["procedure"], cell(row["seconds"], ".1f"), cell(row["cost"], ".2f"), searched]
        cells += [cell(row[group], ".2f") for group in ("all", "many", "medium", "few")] + [cell(row["mmacs"], ".2f")]
        lines.append("| " + " | ".join(cells) + " |")
    title = (
        f"{args.source}, balanced -> {args.target} at {args.imbalance:g}x: {args.space} space, {args.channels} channels, "
        f"{args.cells} cells; epochs: {args.source_epochs} source, {args.adapt_epochs} P1 and P2, {args.target_epochs} P3, "
        f"{args.subnet_epochs} sub-net; search {args.generations} x {args.population}; seed {args.seed}. "
        "A small scale, not the paper's."
    )
    return rows, title + "\n\n" + "\n".join(lines) + "\n"


def main(args):
    stages = plan_quick(args)
    if args.dry_run:
        for command, _ in stages.values():
            print("python", shlex.join(command))
        return
    with runtime.users_mistake():
        os.makedirs(args.out, exist_ok=True)
    run(stages, args)
    rows, text = report(args)
    environment = runtime.environment(runtime.setup(args.device, args.seed))
    whole = {"flags": vars(args), **environment, "rows": rows}
    runtime.write(os.path.join(args.out, "report.json"), json.dumps(whole, indent=1))
    runtime.write(os.path.join(args.out, "report.md"), text)
    print("\n" + text)


if __name__ == "__main__":
    runtime.launch(parse_args, main)
