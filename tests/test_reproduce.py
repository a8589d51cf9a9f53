"""The plan of the paper's runs, how it is run, and what is reported."""

import importlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from common.plan import TABLES, make_plan
from conftest import ROOT, command, stage

import reproduce
from common import darts, paper, runner, runtime, spaces

NATS = "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"
STUB = Path(__file__).with_name("stub_stage.py")


def plan_of(*argv):
    return make_plan(reproduce.parse_args([str(a) for a in ("list", *argv)]))[0]


def parsed(words):
    """The flags that a stage's script understands, with the products of other stages replaced by what is there."""
    script, *argv = words
    fill = NATS if script == "retrain.py" else sys.argv[0]
    argv = [fill if word.endswith("result.json") else word for word in argv]
    return importlib.import_module(script.removesuffix(".py")).parse_args(argv)


# The plan


@pytest.mark.parametrize(
    ("table", "runs"),
    [
        ("1", 4 * 2),
        ("3a", (1 + 3 * 4) + (1 + 3 * 4) + 4 * 4),  # super-nets (P0 has one), searches, sub-nets; four ratios
        ("3b", (1 + 3 * 4) + (1 + 3 * 4) + 4 * 4),
        ("4", (1 + 6 * 3) + (1 + 6 * 3) + 7 * 3),  # P2 four times; three ratios
        ("5", 3 * 2 * 3),
        ("6", (1 + 3 * 2) + (1 + 3 * 2) + 4 * 2),
        ("fig1", 6),
        ("fig2", 4),
        ("baselines", 4 * 2),
    ],
)
def test_a_table_has_as_many_runs_as_the_paper_says(table, runs):
    assert len(plan_of(table)) == 3 * runs


def test_what_tables_share_is_run_once():
    commands = [shlex.join(stage.command) for stage in plan_of().values()]
    assert len(set(commands)) == len(commands) == 402
    assert plan_of("6").keys() < plan_of("3a").keys() and plan_of("3a", "6").keys() == plan_of("3a").keys()
    assert len(plan_of("3a", "4")) == len(plan_of("3a")) + 3 * 9 * 3  # three other P2 at three ratios


def test_every_command_is_the_papers_setting():
    seen = set()
    for planned in plan_of(*TABLES).values():
        script, args = planned.command[0], parsed(planned.command)
        schedule = (args.epochs, args.lr, args.milestones, args.reweight_from) if script != "search.py" else None
        if script == "train_supernet.py":
            assert schedule == (600, 0.1, [400, 500], 400)
            seen.add((script, args.dataset, args.imbalance, args.loss))
        elif script == "adapt.py":
            assert schedule == (200, 0.01, [100], 1 if args.procedure == "P1" else 100)
            seen.add((script, args.procedure, args.dataset, args.imbalance, args.backbone_epochs))
        elif script == "search.py":
            assert (args.generations, args.population, args.crossovers, args.mutations) == (20, 50, 25, 25)
        else:
            assert schedule == (200, 0.1, [160, 180], 160)
            seen.add(
                (script, args.dataset, args.imbalance, args.loss) if script == "retrain.py" else (script, *args.datasets[0])
            )
        assert getattr(args, "val_per_class", 0) == 0
    expected = {("train_supernet.py", "cifar100", r, "CE") for r in (100, 200, 400)}
    for dataset, ratios in (("cifar100", (50, 100, 200, 400)), ("cifar10", (100, 200, 400, 800))):
        expected |= {("train_supernet.py", dataset, r, "CE-DRW") for r in (1, *ratios)}
        expected |= {("adapt.py", p, dataset, r, e) for r in ratios for p, e in (("P1", 0), ("P2", 200))}
        expected |= {("retrain.py", dataset, r, "CE-DRW") for r in (1, *ratios)}
        expected |= {("retrain.py", dataset, 100, loss) for loss in ("CE", "BS", "LDAM-DRW")}  # ResNet-32
        expected |= {("rank_transfer.py", dataset, r) for r in (1, 50, 100)}
    expected |= {("adapt.py", "P2", "cifar100", r, e) for r in (100, 200, 400) for e in (50, 100, 150)}
    assert seen == expected


def test_a_target_that_is_imbalanced_by_nature_is_trained_as_a_target():
    argv = ["6", "--scale", "small", "--ratios", 1, "--source", "synthetic10", "--target", "synthetic100", "--seeds", 1]
    epochs = {name: parsed(stage.command).epochs for name, stage in plan_of(*argv).items() if name.startswith("supernet")}
    assert epochs == {"supernet_synthetic10_1x_s0": 6, "supernet_synthetic100_1x_s0": 18}


def test_the_papers_tables_agree_where_they_share_a_run():
    """Table 4 repeats rows of Table 3a, Table 5 its P3, and Table 6 its accuracies, cut to one decimal."""
    for ratio, row in paper.TABLE_4.items():
        same = paper.TABLE_3A[ratio]
        assert [float(row[p]) for p in same] == [float(number) for number in same.values()]
        assert float(paper.TABLE_5[ratio]["CE-DRW"]) == pytest.approx(float(same["P3"]), abs=0.031)
    for ratio, rows in paper.TABLE_6.items():
        assert {p: numbers[3] for p, numbers in rows.items()} == {p: n[:4] for p, n in paper.TABLE_3A[ratio].items()}


@pytest.mark.parametrize(("name", "classes", "mmacs"), [("A1", 10, 410), ("A2", 10, 407), ("A3", 100, 400), ("A4", 100, 179)])
def test_the_architectures_have_the_multiply_accumulates_of_table_1(name, classes, mmacs):
    net = darts.Network(classes, paper.CHANNELS[name], 20, darts.from_string(paper.ARCHITECTURES[name]))
    assert spaces.macs_counter(net)() / 1e6 == pytest.approx(mmacs, rel=0.01) and paper.MMACS[name] == mmacs


@pytest.mark.parametrize("parts", (1, 4, 9))
def test_shards_are_disjoint_complete_and_closed_under_needs(parts):
    plan = plan_of()
    shards = [runner.shard(plan, i, parts) for i in range(1, parts + 1)]
    assert sorted(name for part in shards for name in part) == sorted(plan) and all(shards)
    for part in shards:
        assert all(need in part for stage in part.values() for need in stage.needs)


def test_needs_come_first_and_seeds_one_after_the_other():
    plan = plan_of("4", "fig1")
    order = runner.in_order(plan)
    place = {name: i for i, name in enumerate(order)}
    assert all(place[need] < place[name] for name in order for need in plan[name].needs)
    assert [plan[name].seed for name in order] == sorted(plan[name].seed for name in order)


# Running


@pytest.fixture
def stubs(tmp_path, monkeypatch):
    """A function from {stage: (what it does, what it needs)} to a plan of stages that only pretend to work."""
    monkeypatch.chdir(tmp_path)

    def make(stages):
        return {name: runner.Stage([str(STUB), how, "--out", f"runs/{name}"], needs) for name, (how, needs) in stages.items()}

    Path("runs").mkdir()
    return make


def run(plan, workers=2):
    return runner.run(plan, "runs", [{}] * workers)


def ran():
    return Path("runs/ran").read_text().split()


def test_a_failure_stops_what_needs_it_and_nothing_else(stubs, capsys):
    stages = {"a": ("ok", []), "b": ("fail", []), "c": ("ok", ["a"]), "d": ("ok", ["b"]), "e": ("ok", ["d"])}
    failed = run(stubs(stages))
    assert failed.keys() == {"b", "d", "e"} and sorted(ran()) == ["a", "b", "c"]
    assert failed["b"] == "failed with exit status 3: error: no such luck (see runs/b.log)" and "needs b" in failed["d"]
    assert "[e] not run" in capsys.readouterr().out
    assert not run(stubs({**stages, "b": ("ok", [])}))
    assert sorted(ran()[3:]) == ["b", "d", "e"]  # and nothing that was done before


def test_needs_run_before_what_needs_them_and_workers_at_the_same_time(stubs):
    begun = time.monotonic()
    assert not run(stubs({"c": ("slow", ["a", "b"]), "a": ("slow", []), "b": ("slow", [])}))
    assert ran()[-1] == "c" and time.monotonic() - begun < 2.7  # 3 s one after the other


def test_done_is_the_same_command_wherever_it_ran(stubs):
    plan = stubs({"a": ("ok", [])})
    run(plan)
    assert runner.record(plan, "runs", "a")
    elsewhere = {"a": runner.Stage([*plan["a"].command, "--device", "cuda", "--data-root", "x"])}
    assert runner.record(elsewhere, "runs", "a") and not runner.record(stubs({"a": ("slow", [])}), "runs", "a")
    Path("runs").rename("moved")
    assert runner.record(plan, "moved", "a")
    Path("moved/a/result.json").write_text('{"cut')
    assert not runner.record(plan, "moved", "a")


def test_a_folder_of_another_command_is_a_failure(stubs):
    run(stubs({"a": ("ok", [])}))
    assert "another command" in run(stubs({"a": ("exit", [])}))["a"]


@pytest.mark.parametrize("number", (signal.SIGINT, signal.SIGTERM, signal.SIGKILL))
def test_a_runner_takes_its_stages_with_it_and_the_next_runs_what_is_missing(number, stubs, tmp_path):
    stages = {"a": ("ok", []), "b": ("hang", ["a"]), "c": ("ok", ["b"])}
    script = f"import sys; sys.path[:0] = ['{ROOT}', '{ROOT}/tests']; import test_reproduce as t; t.as_a_command({stages!r})"
    process = subprocess.Popen([sys.executable, "-c", script])
    while not Path("runs/b.log").exists() or not Path("runs/b.log").read_text():
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(timeout=20) == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
    stage_of_b = int(Path("runs/b.log").read_text())
    for _ in range(200):
        if not Path(f"/proc/{stage_of_b}").exists() or "Z" in Path(f"/proc/{stage_of_b}/stat").read_text():
            break
        time.sleep(0.02)
    else:
        pytest.fail("the stage lives on")
    assert not run(stubs({**stages, "b": ("ok", ["a"])})) and ran() == ["a", "b", "b", "c"]


def as_a_command(stages):
    plan = {name: runner.Stage([str(STUB), how, "--out", f"runs/{name}"], needs) for name, (how, needs) in stages.items()}
    runtime.launch(lambda: None, lambda args: run(plan))


def test_runs_side_by_side_go_round_the_gpus_and_share_the_cores(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    workers = reproduce.workers(reproduce.parse_args(["run", "--gpus", "0,3", "--jobs", "2"]))
    assert [w["CUDA_VISIBLE_DEVICES"] for w in workers] == ["0", "3", "0", "3"] and workers[0]["OMP_NUM_THREADS"] == "4"
    assert reproduce.workers(reproduce.parse_args(["run", "--jobs", "2"])) == [{"OMP_NUM_THREADS": "8"}] * 2


# Reporting and pricing


def finish(plan, out, name, result):
    Path(out, name).mkdir(parents=True)
    config = {"command": runner.text(plan[name].command), "commit": "abc", "torch": "2", "device": "cpu: x"}
    for file, contents in (("config.json", config), ("result.json", result)):
        Path(out, name, file).write_text(json.dumps(contents))


def test_a_report_has_the_papers_numbers_ours_and_nothing_guessed(tmp_path, capsys):
    argv = ["report", "3a", "3b", "6", "fig2", "--out", str(tmp_path)]
    plan, _ = make_plan(reproduce.parse_args(argv))
    accuracy = {"all": 40.0, "many": 60.0, "medium": None, "few": 12.5}
    for seed, change in ((0, 0), (2, 3)):
        for p in ("P1", "P2"):
            result = {"arch": "the same", "accuracy": {**accuracy, "all": 40.0 + change}}
            finish(plan, tmp_path, f"retrain_{p}_cifar10_cifar100_100x_s{seed}_on_cifar100_100x", result)
    for p, seconds in (("P1", 50.0), ("P2", 150.0)):
        finish(plan, tmp_path, f"{p}_cifar10_cifar100_100x_s1", {"seconds": seconds})
    stage("reproduce", *argv)
    text = (tmp_path / "report.md").read_text()
    assert text.strip() == capsys.readouterr().out.strip()
    assert "| P0 | [45.80] | [40.83] |" in text and "| P1 | [45.06] | 41.50 ± 2.12 (2) [41.93] |" in text
    assert "60.00 ± 0.00 (2) [65.2] | [41.6] | 12.50 ± 0.00 (2) [15.0]" in text  # medium: None in both results
    assert "not legible" in text and "| P1 | 50.00 (1) [2000] |" in text and "P2 3.00 [2]" in text
    assert "100x, seed 2: P1 = P2" in text and "6 of " in text and "commit: abc" in text
    assert "Not the paper's setting" not in text
    rows = json.loads((tmp_path / "report.json").read_text())["tables"]["fig2"]
    assert rows[0] == {"row": "P1", "column": "100x", "paper": "2000", "ours": [50.0]}
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 6


def test_a_report_says_what_is_not_the_papers(tmp_path, capsys):
    stage("reproduce", "report", "3a", "--source", "synthetic10", "--scale", "day", "--out", tmp_path)
    assert "**Not the paper's setting**: source synthetic10, source_epochs 300" in capsys.readouterr().out


def test_figure_1_is_the_tau_of_the_stages_accuracies(tmp_path, capsys):
    argv = ["report", "fig1", "--seeds", "1", "--out", str(tmp_path)]
    plan, _ = make_plan(reproduce.parse_args(argv))
    archs = [f"|nor_conv_3x3~0|+|none~0|none~1|+|none~0|none~1|{op}~2|" for op in ("none", "skip_connect", "nor_conv_1x1")]
    for dataset, ratio, ranks in (("cifar10", 1, (1, 2, 3)), ("cifar100", 100, (1, 3, 2))):
        finish(plan, tmp_path, f"rank_{dataset}_{ratio}x_s0", {})
        lines = [{"method": "stand-alone", "arch": arch, "dataset": dataset, "imbalance": ratio, "seed": 0, "accuracy": 50 + r}
                 for arch, r in zip(archs, ranks, strict=True)]  # fmt: skip
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / f"rank_{dataset}_{ratio}x_s0" / "accuracies.jsonl").write_text(text)
    stage("reproduce", *argv)
    assert json.loads((tmp_path / "report.json").read_text())["tables"]["fig1"]["tau"][0][1] == pytest.approx(1 / 3)


def test_the_cost_of_a_plan(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reproduce, "measured", lambda args, benchmark, kinds: dict.fromkeys(kinds, 1000.0))
    argv = ["--scale", "small", "--seeds", 1, "--ratios", 100, "--source", "synthetic10", "--target", "synthetic100"]
    stage("reproduce", "cost", "3a", "fig2", *argv, "--out", tmp_path)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    cells = {line[0]: line[1:] for line in lines if line}
    target = sum(int(480 * 0.01 ** (c / 99)) for c in range(100))  # 20 images a class are held out
    expected = {"super-net step": 6 * 48000 + (6 + 18) * target, "P1 step": 6 * target, "scoring": 4 * 48 * 3000,
                "sub-net step": 4 * 8 * target}  # fmt: skip
    for kind, images in expected.items():
        assert [float(cell.replace(",", "")) for cell in cells[kind]] == pytest.approx(
            [images / 1e6, 1000, images / 3.6e6], abs=0.006
        )
    assert float(cells["13 runs, one at a time"][-1]) > 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["list", "3c"], "unknown table '3c'"),
        (["run", "--shard", "3/2"], "takes I/N with I from 1 to N, not '3/2'"),
        (["run", "--seeds", "0"], "--seeds: must be at least 1"),
        (["run", "--gpus", "0,,1"], "takes different numbers"),
        (["list", "--source", "nowhere"], "unknown dataset 'nowhere'"),
        (["list", "--scale", "small", "--val-images", "600000"], "cannot hold out"),
        (
            ["list", "6", "--ratios", "1", "--source", "cifar10", "--target", "cifar10", "--source-epochs", "1"],
            "two different runs",
        ),
    ],
)
def test_a_mistake_is_one_line(argv, message, tmp_path, capsys):
    with pytest.raises((runtime.UserError, SystemExit)) as mistake:
        stage("reproduce", *argv, "--out", tmp_path / "r")
    assert message in str(mistake.value) + capsys.readouterr().err


# The whole


def test_quick_runs_resumes_and_reports(images, tmp_path):
    argv = ["--source", images, "--target", images, "--ratios", 5, "--channels", 4, "--source-epochs", 1, "--adapt-epochs", 1,
            "--target-epochs", 1, "--subnet-epochs", 1, "--warmup", 0, "--generations", 1, "--population", 2,
            "--val-images", 12, "--out", tmp_path / "quick"]  # fmt: skip
    done = command("reproduce.py", "quick", *argv)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split("|")[1].strip() for line in done.stdout.splitlines() if line.startswith("| P")]
    assert rows == ["P0", "P1", "P2", "P3", "P1", "P2", "P3"]  # Table 6, Figure 2
    again = command("reproduce.py", "quick", *argv)
    assert again.stdout.count("already finished") == 12 and again.stdout.endswith(done.stdout[done.stdout.index("# ") :])
