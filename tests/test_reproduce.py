"""The plan of the paper's runs, how it is run, and what is reported."""

import fcntl
import importlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from conftest import ROOT, stage

import reproduce
from common import darts, nats, runtime, spaces

STUB = """
import json, os, shlex, sys, time
out, how = sys.argv[1], sys.argv[2]
with open(os.path.join(os.path.dirname(out), "ran"), "a") as file:
    file.write(os.path.basename(out) + "\\n")
print("working", flush=True)
time.sleep(0.3 if how == "slow" else 0)
if how == "fails" and not os.path.exists("mended"):
    print("error: no such luck")
    sys.exit(3)
os.makedirs(out, exist_ok=True)
for name, contents in (("config.json", {"command": shlex.join(["python", *sys.argv])}), ("result.json", {})):
    with open(os.path.join(out, name), "w") as file:
        json.dump(contents, file)
"""


def args_of(*argv):
    return reproduce.parse_args([str(a) for a in argv])


def commands(*argv):
    plan, _ = reproduce.paper_plan(args_of("list", *argv))
    return [parts["command"] for parts in plan.values()]


# The plan


@pytest.mark.parametrize(
    ("table", "runs"),
    [
        ("1", 4 * 2),
        ("3a", (1 + 3 * 4) + (1 + 3 * 4) + 4 * 4),  # super-nets (P0 shares its one), searches, sub-nets; four ratios
        ("3b", (1 + 3 * 4) + (1 + 3 * 4) + 4 * 4),
        ("4", (1 + 6 * 3) + (1 + 6 * 3) + 7 * 3),  # P2 four times; three ratios
        ("5", 3 * 2 * 3),
        ("6", (1 + 3 * 2) + (1 + 3 * 2) + 4 * 2),
        ("fig1", 6),
        ("fig2", 4),
    ],
)
def test_a_table_has_as_many_runs_as_the_paper_says(table, runs):
    assert len(commands(table)) == 3 * runs


def test_what_tables_share_is_run_once():
    every = commands()
    assert len({shlex.join(command) for command in every}) == len(every) == 3 * 134
    assert set(map(tuple, commands("6"))) < set(map(tuple, commands("3a"))) and len(commands("3a", "6")) == len(commands("3a"))
    assert len(commands("3a", "4")) == len(commands("3a")) + 3 * 9 * 3  # three other P2 at three ratios


def test_every_command_is_the_papers_setting():
    seen = set()
    for script, *argv in commands():
        args = importlib.import_module(script.removesuffix(".py")).parse_args(
            [sys.argv[0] if a.endswith(".json") else a for a in argv] if script != "retrain.py" else
            ["|none~0|+|none~0|none~1|+|none~0|none~1|none~2|" if a.endswith(".json") else a for a in argv]
        )  # fmt: skip
        if script == "train_supernet.py":
            assert (args.epochs, args.lr, args.milestones, args.reweight_from) == (600, 0.1, [400, 500], 400)
            seen.add((script, args.dataset, args.imbalance, args.loss))
        elif script == "adapt.py":
            start = 1 if args.procedure == "P1" else 100
            assert (args.epochs, args.lr, args.milestones, args.reweight_from) == (200, 0.01, [100], start)
            seen.add((script, args.procedure, args.dataset, args.imbalance, args.backbone_epochs))
        elif script == "search.py":
            assert (args.generations, args.population, args.crossovers, args.mutations) == (20, 50, 25, 25)
            assert (args.mutate_probability, args.topk) == (0.1, 10)
        else:
            assert (args.epochs, args.lr, args.milestones, args.reweight_from) == (200, 0.1, [160, 180], 160)
            if script == "retrain.py":
                seen.add((script, args.dataset, args.imbalance))
            else:
                assert args.archs == "mmacs:149"
                seen.add((script, args.datasets[0]))
        assert getattr(args, "val_per_class", 0) == 0
    hundred, ten = (50, 100, 200, 400), (100, 200, 400, 800)
    expected = {("train_supernet.py", "cifar10", 1, "CE-DRW"), ("train_supernet.py", "cifar100", 1, "CE-DRW")}
    for dataset, ratios in (("cifar100", hundred), ("cifar10", ten)):
        expected |= {("train_supernet.py", dataset, r, "CE-DRW") for r in ratios}
        expected |= {("adapt.py", p, dataset, r, e) for r in ratios for p, e in (("P1", 0), ("P2", 200))}
        expected |= {("retrain.py", dataset, r) for r in (1, *ratios)}
        expected |= {("rank_transfer.py", f"{dataset}:{r}") for r in (1, 50, 100)}
    expected |= {("train_supernet.py", "cifar100", r, "CE") for r in (100, 200, 400)}
    expected |= {("adapt.py", "P2", "cifar100", r, e) for r in (100, 200, 400) for e in (50, 100, 150)}
    assert seen == expected


def test_needs_come_first_and_seeds_one_after_the_other():
    plan, _ = reproduce.paper_plan(args_of("list", "4", "fig1"))
    order = reproduce.in_order(plan)
    assert sorted(order) == sorted(plan)
    for i, name in enumerate(order):
        assert all(need in order[:i] for need in plan[name]["needs"])
    seeds = [plan[name]["seed"] for name in order]
    assert seeds == sorted(seeds) and set(seeds) == {0, 1, 2}


def test_the_papers_tables_agree_where_they_share_a_run():
    """Table 4 repeats rows of Table 3a, Table 5 its P3, and Table 6 its accuracies, cut to one decimal."""
    for ratio in (100, 200, 400):
        row, same = reproduce.TABLE_4[ratio], reproduce.TABLE_3A[ratio]
        assert [float(row[k]) for k in ("P0", "P1", 200, "P3")] == [float(v) for v in same.values()]
        assert float(reproduce.TABLE_5[ratio]["CE-DRW"]) == pytest.approx(float(same["P3"]), abs=0.031)
    for ratio in (100, 400):
        for p in reproduce.PROCEDURES:
            assert reproduce.TABLE_6[ratio][p][3] == reproduce.TABLE_3A[ratio][p][:4]


def test_a1_to_a4_have_the_multiply_accumulates_of_table_1():
    for name, mmacs in {"A1": 410, "A2": 407, "A3": 400, "A4": 179}.items():
        classes = 10 if name in ("A1", "A2") else 100
        net = darts.Network(classes, reproduce.FOUR_CHANNELS[name], 20, darts.from_string(reproduce.FOUR[name]))
        assert spaces.macs_counter(net)() / 1e6 == pytest.approx(mmacs, rel=0.01)


def test_every_shard_of_the_plan_is_run_by_one():
    plan, _ = reproduce.paper_plan(args_of("list"))
    parts = [reproduce.shard(plan, i, 5) for i in range(1, 6)]
    assert sorted(name for part in parts for name in part) == sorted(plan) and min(map(len, parts)) > 40
    for part in parts:  # only the source super-net may be another's
        for name in part:
            assert all(need in part or plan[name]["command"][0] == "adapt.py" for need in plan[name]["needs"])


def test_the_price_of_a_plan(capsys):
    argv = ["--scale", "small", "--seeds", 1, "--ratios", 100, "--source", "synthetic10", "--target", "synthetic100"]
    stage("reproduce", "cost", "3a", "fig2", *argv)
    rows = [[cell.strip() for cell in line.split("|")] for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len({row[1] for row in rows} - {"run", "---", "all", "all, one at a time"}) == 1 + 3 + 4 + 4
    rows = {row[2]: row for row in rows if row[1] == "all"}
    target = sum(int(480 * 0.01 ** (c / 99)) for c in range(100))  # 20 images a class are held out
    assert float(rows["P1 step"][4]) == pytest.approx(6 * target / 1e6, abs=0.06) and float(rows["P1 step"][6]) == 0
    steps = 6 * 10 * 4800 + (6 + 18) * target
    assert float(rows["super-net step"][4]) == pytest.approx(steps / 1e6, abs=0.06)
    assert float(rows["scoring"][4]) == pytest.approx(4 * 48 * 3000 / 1e6, abs=0.06)
    assert float(rows["super-net step"][6]) == pytest.approx(2 * float(rows["super-net step"][5]), rel=0.01)
    assert rows.keys() == {"super-net step", "P1 step", "scoring", "sub-net step"}


def test_figure_1_is_priced_at_its_own_multiply_accumulates():
    args = args_of("cost", "fig1", "--scale", "small")
    _, macs = reproduce.speed("Figure 1 step", args, torch.device("cpu"))
    assert macs == spaces.macs_counter(nats.Network(100, 8, 1, (3, 3, 3, 3, 0, 1)))()


# Running


RUN_PART = """
import sys; sys.path.insert(0, sys.argv[1])
import json, reproduce
from argparse import Namespace
from common import runtime
plan, args = json.loads(sys.argv[2]), Namespace(out=sys.argv[3], jobs=1, gpus=None)
part = reproduce.shard(plan, int(sys.argv[4]), 2)
runtime.launch(lambda: args, lambda args: reproduce.run(plan, args, part, reproduce.workers(args), show=False))
"""


@pytest.fixture
def stubs(tmp_path, monkeypatch):
    """A function that makes a plan of stages which do nothing, from {stage: (how, needs)}."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stub.py").write_text(STUB)
    args = Namespace(out=str(tmp_path / "runs"), jobs=2, gpus=None)

    def make(stages):
        return {
            name: {"command": [str(tmp_path / "stub.py"), os.path.join(args.out, name), how], "needs": needs, "seed": 0}
            for name, (how, needs) in stages.items()
        }

    make.args, make.ran = args, lambda: (tmp_path / "runs/ran").read_text().split()
    return make


def test_a_failure_stops_what_needs_it_and_nothing_else(stubs, tmp_path, capfd):
    plan = stubs({"a": ("ok", []), "b": ("fails", []), "c": ("ok", ["a"]), "d": ("ok", ["b"]), "e": ("ok", ["d"])})
    failed = reproduce.run(plan, stubs.args, list(plan), reproduce.workers(stubs.args), show=False)
    lost = {"d": (None, "b has failed"), "e": (None, "d has failed")}
    assert failed == {"b": (3, "error: no such luck"), **lost} and sorted(stubs.ran()) == ["a", "b", "c"]
    told = capfd.readouterr().out
    assert "[b] failed with exit status 3" in told and "no such luck" in told and "[e] not run" in told
    (tmp_path / "mended").touch()
    assert not reproduce.run(plan, stubs.args, list(plan), reproduce.workers(stubs.args), show=False)
    assert sorted(stubs.ran()[3:]) == ["b", "d", "e"]  # and nothing that was done before


def test_a_stage_with_another_command_counts_as_not_done(stubs):
    plan = stubs({"a": ("ok", [])})
    reproduce.run(plan, stubs.args, ["a"], reproduce.workers(stubs.args), show=False)
    assert reproduce.done(plan, stubs.args, "a")
    assert not reproduce.done(stubs({"a": ("slow", [])}), stubs.args, "a")
    Path(stubs.args.out, "a", "result.json").write_text('{"cut')
    assert not reproduce.done(plan, stubs.args, "a")


def test_a_stage_that_another_command_has_finished_fails_and_nobody_waits_for_it(stubs, tmp_path):
    """As when a stage was run by hand, in other words: it exits 0, and its config.json goes on naming the other command."""
    (tmp_path / "stub.py").write_text("import sys; sys.exit(0)")
    plan = stubs({"a": ("ok", []), "b": ("ok", ["a"])})
    failed = reproduce.run(plan, stubs.args, list(plan), reproduce.workers(stubs.args), show=False)
    assert failed["a"] == (0, "its folder holds a run that another command has finished") and failed["b"][0] is None


def test_a_need_that_failed_in_another_shard_is_an_error_until_it_is_done(stubs, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "PATIENCE", 0)
    plan = stubs({"a": ("fails", []), "b": ("ok", ["a"])})
    reproduce.run(plan, stubs.args, ["a"], reproduce.workers(stubs.args), show=False)
    assert reproduce.run(plan, stubs.args, ["b"], reproduce.workers(stubs.args), show=False) == {"b": (None, "a has failed")}
    (tmp_path / "mended").touch()
    subprocess.run([sys.executable, *plan["a"]["command"]], check=True)  # by hand: the old mark of failure stays
    assert not reproduce.run(plan, stubs.args, ["b"], reproduce.workers(stubs.args), show=False)


def test_an_old_mark_of_failure_does_not_count_while_its_shard_begins_again(stubs, tmp_path):
    plan = stubs({"a": ("fails", []), "b": ("ok", ["a"])})
    reproduce.run(plan, stubs.args, ["a"], reproduce.workers(stubs.args), show=False)
    argv = [sys.executable, "-c", RUN_PART.replace("reproduce.shard(plan, int(sys.argv[4]), 2)", "[sys.argv[4]]"), str(ROOT)]
    b = subprocess.Popen([*argv, json.dumps(plan), stubs.args.out, "b"], stdout=subprocess.PIPE, text=True)
    assert "waits for a" in b.stdout.readline()  # which has failed, in the attempt before
    (tmp_path / "mended").touch()
    assert not reproduce.run(plan, stubs.args, ["a"], reproduce.workers(stubs.args), show=False)
    assert b.wait(timeout=30) == 0 and stubs.ran() == ["a", "a", "b"]


def test_a_stage_that_somebody_is_at_work_in_is_waited_for(stubs, capfd):
    plan = stubs({"a": ("ok", [])})
    folder = Path(stubs.args.out, "a")
    folder.mkdir(parents=True)
    lock = open(folder / "lock", "w")  # noqa: SIM115
    fcntl.flock(lock, fcntl.LOCK_EX)
    threading.Timer(1, lock.close).start()
    begun = time.monotonic()
    assert not reproduce.run(plan, stubs.args, ["a"], reproduce.workers(stubs.args), show=False)
    assert time.monotonic() - begun > 0.9 and stubs.ran() == ["a"]
    assert "[a] waits for another process" in capfd.readouterr().out


@pytest.mark.parametrize("number", (signal.SIGKILL, signal.SIGHUP))
def test_stages_end_with_a_runner_that_is_killed(number, stubs):
    (Path(stubs.args.out).parent / "stub.py").write_text(STUB.replace("0.3", "0.3 if os.path.exists('mended') else 30"))
    plan = stubs({"a": ("slow", []), "b": ("ok", ["a"])})
    argv = [sys.executable, "-c", RUN_PART.replace("reproduce.shard(plan, int(sys.argv[4]), 2)", "list(plan)"), str(ROOT)]
    runner = subprocess.Popen([*argv, json.dumps(plan), stubs.args.out, "1"])
    while not Path(stubs.args.out, "a.log").exists() or "working" not in Path(stubs.args.out, "a.log").read_text():
        time.sleep(0.01)
    stage_of = f"stub.py {os.path.join(stubs.args.out, 'a')} slow"
    assert subprocess.run(["pgrep", "-f", stage_of], capture_output=True).returncode == 0
    runner.send_signal(number)
    runner.wait(timeout=10)
    for _ in range(100):
        if subprocess.run(["pgrep", "-f", stage_of], capture_output=True).returncode:
            break
        time.sleep(0.05)
    else:
        pytest.fail("the stage lives on")
    Path("mended").touch()
    assert not reproduce.run(plan, stubs.args, list(plan), reproduce.workers(stubs.args), show=False)


def test_a_signal_while_a_stage_is_being_started_ends_it_too(stubs):
    (Path(stubs.args.out).parent / "stub.py").write_text(STUB.replace("0.3", "30"))
    plan = stubs({"a": ("slow", [])})
    patch = """
import os, signal, subprocess
real = reproduce.start
def start(*args):
    made = real(*args)
    print(made[0].pid, flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    return made
reproduce.start = start
"""
    script = RUN_PART.replace("reproduce.shard(plan, int(sys.argv[4]), 2)", "list(plan)").replace(
        "plan, args =", patch + "plan, args =", 1
    )
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script, str(ROOT), json.dumps(plan), stubs.args.out, "1"],
                          capture_output=True, text=True, timeout=60)  # fmt: skip
    assert done.returncode == 130 and time.monotonic() - begun < 25
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout.split()[-1]), 0)


def test_what_is_shown_is_what_the_stages_print_this_time(stubs, capfd):
    plan = stubs({"a": ("fails", []), "b": ("ok", [])})
    for _ in range(2):
        reproduce.run(plan, stubs.args, list(plan), reproduce.workers(stubs.args), show=True)
        assert capfd.readouterr().out.count("[a] working") == 1


def test_a_folder_is_the_same_however_it_is_written_and_on_whatever_device(stubs, tmp_path):
    outs = [args_of("list", "--out", out).out for out in ("u", "./u/", tmp_path / "u", "x/../u")]
    assert set(outs) == {"u"} and args_of("list", "--out", "/elsewhere/u").out == "/elsewhere/u"
    args = args_of("report", "fig2", "--device", "cpu", "--out", "u")
    plan, _ = reproduce.paper_plan(args)
    stage_name = next(iter(plan))
    finish(plan, args, stage_name, {"seconds": 1.0})
    for argv in (["--device", "cuda"], ["--data-root", "elsewhere"], []):
        assert reproduce.done(reproduce.paper_plan(args_of("report", "fig2", *argv, "--out", "u"))[0], args, stage_name)
    assert not reproduce.done(
        reproduce.paper_plan(args_of("report", "fig2", "--space", "darts", "--out", "u"))[0], args, stage_name
    )


def test_two_shards_share_a_plan_and_run_nothing_twice(stubs):
    chains = {f"{kind}{i}": ("slow", needs) for i in range(3) for kind, needs in (("s", ["source"]), ("t", [f"s{i}"]))}
    plan = stubs({"source": ("slow", []), **chains})
    argv = [sys.executable, "-c", RUN_PART, str(ROOT), json.dumps(plan), stubs.args.out]
    both = [subprocess.Popen([*argv, part]) for part in "12"]
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    assert sorted(stubs.ran()) == sorted(plan)


def test_interrupted_it_goes_on_with_what_is_missing(stubs):
    plan = stubs({f"a{i}": ("slow", [f"a{i - 1}"] if i else []) for i in range(8)})
    argv = [sys.executable, "-c", RUN_PART.replace("(plan, int(sys.argv[4]), 2)", "(plan, 1, 1)"), str(ROOT), json.dumps(plan)]
    process = subprocess.Popen([*argv, stubs.args.out, "1"], stderr=subprocess.DEVNULL)
    while not reproduce.done(plan, stubs.args, "a1"):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=30)
    there = [name for name in plan if reproduce.done(plan, stubs.args, name)]
    assert 2 <= len(there) < 8
    assert not reproduce.run(plan, stubs.args, list(plan), reproduce.workers(stubs.args), show=False)
    ran = stubs.ran()
    assert all(ran.count(name) == 1 for name in there) and all(reproduce.done(plan, stubs.args, name) for name in plan)


# Reporting


def finish(plan, args, name, result):
    folder = os.path.join(args.out, name)
    os.makedirs(folder)
    config = {"command": reproduce.told(plan[name]["command"]), "commit": "abc", "torch": "2", "device": "cpu: x"}
    for file, contents in (("config.json", config), ("result.json", result)):
        with open(os.path.join(folder, file), "w") as stream:
            json.dump(contents, stream)


def test_a_report_has_the_papers_numbers_ours_and_nothing_guessed(tmp_path):
    args = args_of("report", "3a", "3b", "6", "fig2", "--out", tmp_path)
    plan, cells = reproduce.paper_plan(args)
    accuracy = {"all": 40.0, "many": 60.0, "medium": None, "few": 12.5}
    for seed, change in ((0, 0), (2, 3)):
        finish(plan, args, f"retrain_P1_cifar10_cifar100_100x_s{seed}_on_cifar100_100x",
               {"accuracy": {**accuracy, "all": 40.0 + change}})  # fmt: skip
    finish(plan, args, "P1_cifar10_cifar100_100x_s1", {"seconds": 50.0})
    finish(plan, args, "P2_cifar10_cifar100_100x_s1", {"seconds": 150.0})
    whole, text = reproduce.report(plan, cells, args)
    lines = {tuple(c.strip() for c in line.split("|")[1:3]): line for line in text.splitlines() if line.startswith("| P")}
    assert "| P1 | 45.06 / / /" in text.replace("  ", " ")
    assert "41.93 / 41.50 ± 2.12 / -0.43 / 2" in text and "65.2 / 60.00 ± 0.00 / -5.20 / 2" in text
    assert "41.6 /  /  / " in text  # medium: None in both results
    assert "| P3 |  /  /  /  |" in text and "not legible" in text  # Table 3b
    assert "| P2 | 2 | 3.00 |" in text and "| P3 | 5 |  |" in text
    assert "2000 / 50.00 / -1950.00 / 1" in text
    assert "4 of " in text and "commit: abc" in text and "Not the paper's setting" not in text
    assert lines and whole["fig2"][0] == {"row": "P1", "column": "seconds", "paper": 2000, "ours": [50.0]}
    small_1 = args_of("report", "1", "--scale", "small", "--out", tmp_path / "none")
    assert "A1, 410 M FLOPs in the paper |" in reproduce.report(*reproduce.paper_plan(small_1), small_1)[1]
    kept = list(reproduce.finished(plan, args))
    assert len(kept) == 4 and {"stage": "P2_cifar10_cifar100_100x_s1", "result": {"seconds": 150.0}}.items() <= kept[2].items()
    small = args_of("report", "3a", "--scale", "small", "--out", tmp_path / "none")
    assert "**Not the paper's setting**" in reproduce.heading(reproduce.paper_plan(small)[0], small)
    own = args_of("report", "3a", "--source", "synthetic10", "--space", "darts", "--out", tmp_path / "none")
    assert "setting**: source synthetic10, space darts." in reproduce.heading(reproduce.paper_plan(own)[0], own)


def test_figure_1_has_tau_of_each_seed(tmp_path):
    """Against a hand count: of three architectures, one pair is in the other order in seed 1."""
    args = args_of("report", "fig1", "--seeds", 2, "--out", tmp_path)
    plan, cells = reproduce.paper_plan(args)
    archs = [nats.to_string((3, 3, 3, 3, gene, 1)) for gene in (0, 1, 4)]
    ranks = {("cifar10", 1.0, 0): (1, 2, 3), ("cifar10", 1.0, 1): (1, 2, 3), ("cifar100", 100.0, 0): (1, 2, 3),
             ("cifar100", 100.0, 1): (1, 3, 2)}  # fmt: skip
    for (dataset, ratio, seed), accuracies in ranks.items():
        name = f"rank_{dataset}_{ratio:g}x_s{seed}"
        assert name in plan, list(plan)
        finish(plan, args, name, {})
        lines = [{"arch": a, "dataset": dataset, "imbalance": ratio, "seed": seed, "accuracy": 50.0 + r}
                 for a, r in zip(archs, accuracies, strict=True)]  # fmt: skip
        (tmp_path / name / "accuracies.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    _, text = reproduce.report(plan, cells, args)
    assert "| cifar10 1x |  |  / 0.67 ± 0.47 /  / 2 |" in text and "not legible" in text
    assert "And of their means over seeds" in text


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["list", "3c"], "unknown table '3c'"),
        (["run", "--shard", "3/2"], "--shard takes I/N"),
        (["run", "--seeds", "0"], "--seeds must be at least 1"),
        (["list", "--scale", "small", "--source", "nowhere"], "unknown dataset 'nowhere'"),
        (["list", "--source", "a/images", "--target", "b/images"], "need different names"),
        (["list", "3a", "--ratios", "75"], "no run of 3a"),
        (["run", "--gpus", "0,,1"], "--gpus takes"),
        (["run", "--gpus", "0,0"], "--gpus takes"),
    ],
)
def test_a_mistake_is_told(argv, told, tmp_path):
    with pytest.raises(runtime.UserError, match=told):
        stage("reproduce", *argv, "--out", tmp_path / "r")


def test_runs_side_by_side_go_round_the_gpus_and_share_the_cores(monkeypatch):
    monkeypatch.setattr(reproduce.os, "cpu_count", lambda: 16)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    several = reproduce.workers(args_of("run", "fig2", "--gpus", "0,3", "--jobs", "2"))
    assert [w["CUDA_VISIBLE_DEVICES"] for w in several] == ["0", "3", "0", "3"] and several[0]["OMP_NUM_THREADS"] == "4"
    assert reproduce.workers(args_of("run", "fig2", "--jobs", "2")) == [{"OMP_NUM_THREADS": "8"}] * 2
