"""How the plan of the paper's runs is run, and what is reported."""

import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from conftest import command, refused, stage

import reproduce
from common import runner, runtime
from common.plan import make_plan

STUB = Path(__file__).with_name("stub_stage.py")


# Running


def stub(how, needs=(), name="a", turn=0):
    return runner.Stage([str(STUB), how, "--out", f"runs/{name}"], needs, turn, {})


def run(stages, workers=2):
    """Runs stages, {name: (what it does, what it needs)}, that only pretend to work."""
    return runner.run({name: stub(*stage, name) for name, stage in stages.items()}, "runs", [{}] * workers)


def ran():
    return Path("runs/ran").read_text().split()


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()


def test_a_failure_stops_what_needs_it_and_nothing_else(runs, capsys):
    stages = {"a": ("ok", []), "b": ("fail", []), "c": ("ok", ["a"]), "d": ("ok", ["b"]), "e": ("ok", ["d"])}
    missing = run(stages)
    assert missing.keys() == {"b", "d", "e"} and sorted(ran()) == ["a", "b", "c"]
    assert missing["b"] == "exit status 3: error: no such luck (see runs/b.log)" and "not run" in missing["e"]
    assert not run({**stages, "b": ("ok", [])})
    assert sorted(ran()[3:]) == ["b", "d", "e"]  # and nothing that was done before
    Path("runs/a/config.json").write_text('{"command": "python another.py"}')
    assert run({"a": ("ok", [])})["a"].startswith("'runs/a' holds a finished run of another command")


def test_needs_run_before_what_needs_them_and_workers_at_the_same_time(runs):
    """`meet` waits until two stages have begun."""
    assert not run({"c": ("ok", ["a", "b"]), "a": ("meet", []), "b": ("meet", [])})
    assert ran()[-1] == "c"


def test_an_earlier_turn_runs_first(runs):
    assert not runner.run({"a": stub("ok", (), "a", turn=1), "b": stub("ok", (), "b", turn=0)}, "runs", [{}])
    assert ran() == ["b", "a"]


def test_done_is_the_same_command_wherever_it_ran(runs):
    run({"a": ("ok", [])})
    same, other = stub("ok"), stub("hang")
    elsewhere = same._replace(command=[*same.command, "--device", "cuda", "--data-root", "x"])
    Path("runs").rename("moved")
    assert runner.record({"a": same}, "moved", "a") and runner.record({"a": elsewhere}, "moved", "a")
    assert not runner.record({"a": other}, "moved", "a")
    here, moved, wrong = (runner.identity(f"adapt.py --supernet {run}/supernet.pt --out x") for run in ("a/p", "/b/p", "a/q"))
    assert here == moved != wrong
    one, turned, other = (runner.identity(f"a.py {flags} --out x") for flags in ("--b 1 2 --c", "--c --b 1 2", "--b 2 1 --c"))
    assert one == turned != other
    Path("moved/a/result.json").write_text('{"cut')
    assert not runner.record({"a": same}, "moved", "a")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_runner_takes_its_stages_with_it_and_the_next_runs_what_is_missing(number, status, runs):
    stages = {"a": ("ok", []), "b": ("hang", ["a"]), "c": ("ok", ["b"])}
    process = multiprocessing.get_context("fork").Process(target=as_a_command, args=[stages])  # without importing torch again
    process.start()
    log = Path("runs/b.log")
    while not (log.exists() and log.read_text()):
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.join(timeout=20)
    assert process.exitcode == status
    state = Path(f"/proc/{log.read_text().strip()}/stat")
    for _ in range(200):
        if not state.exists() or "Z" in state.read_text():
            break
        time.sleep(0.02)
    else:
        pytest.fail("the stage lives on")
    assert not run({**stages, "b": ("ok", ["a"])}) and ran() == ["a", "b", "b", "c"]


def as_a_command(stages):
    runtime.launch(lambda: None, lambda args: run(stages))


def test_runs_side_by_side_go_round_the_gpus_and_share_the_cores(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    workers = reproduce.workers(reproduce.parse_args(["run", "--gpus", "0,3", "--jobs", "2"]))
    assert [w["CUDA_VISIBLE_DEVICES"] for w in workers] == ["0", "3", "0", "3"] and workers[0]["OMP_NUM_THREADS"] == "4"
    assert reproduce.workers(reproduce.parse_args(["run", "--jobs", "2"])) == [{"OMP_NUM_THREADS": "8"}] * 2
    assert reproduce.parse_args(["run", "--gpus", "0,3"]).device == "cuda"  # and not the CPU where there is no GPU
    assert "--gpus" in refused("reproduce", "run", "--gpus", "0,", "1")


# Reporting and pricing


def finish(plan, out, name, result):
    Path(out, name).mkdir(parents=True)
    config = {"command": runner.text(plan[name].command), "commit": "abc"}
    for file, contents in (("config.json", config), ("result.json", result)):
        Path(out, name, file).write_text(json.dumps(contents))


@pytest.mark.parametrize(("target", "balanced"), [("cifar10", 72.5), ("cifar100", 60.0)])
def test_published_baselines_stand_beside_a_folder_of_the_same_name(target, balanced, tmp_path, capsys):
    folder = tmp_path / "cifar10"
    for split in ("train", "val"):
        (folder / split / "one").mkdir(parents=True)
        (folder / split / "one" / "image.png").touch()
    folders = {"cifar10": str(folder), "cifar100": "cifar100"}
    argv = ["report", "baselines", "--source", str(folder), "--target", folders[target], "--out", str(tmp_path)]
    plan, _ = make_plan(reproduce.parse_args(argv))
    finish(
        plan,
        tmp_path,
        "retrain_resnet32_BS_on_cifar10_100x_s0",
        {"arch": "resnet32", "accuracy": {"all": 72.5, "balanced": balanced}},
    )
    stage("reproduce", *argv)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| BS")]
    columns = ["72.50 [76.4 BoT, 77.9 Code]", "[43.2 BoT, 44.1 Code]"]
    assert rows[0] == f"| BS | {' | '.join(columns[: 1 + (target == 'cifar100')])} |"
    numbers = json.loads((tmp_path / "report.json").read_text())["tables"]["baselines"]
    assert [number["balanced"] for number in numbers if number["ours"]] == [[balanced]]
    assert rows[1:] == ([] if balanced == 72.5 else ["| BS | 60.00 |  |"])  # the means over classes, where they differ


def test_a_report_has_the_papers_numbers_ours_and_nothing_guessed(tmp_path, capsys):
    argv = ["report", "3a", "3b", "6", "fig2", "--out", str(tmp_path)]
    plan, _ = make_plan(reproduce.parse_args(argv))
    for seed, accuracy in ((0, 40.0), (2, 43.0)):
        for p in ("P1", "P2"):
            result = {
                "arch": "the same",
                "accuracy": {"all": accuracy, "balanced": accuracy, "many": 60.0, "medium": None, "few": 12.5},
            }
            finish(plan, tmp_path, f"retrain_{p}_cifar10_cifar100_100x_s{seed}_on_cifar100_100x", result)
    finish(plan, tmp_path, "P1_cifar10_cifar100_100x_s1", {"seconds": 50.0})
    stage("reproduce", *argv)
    text = (tmp_path / "report.md").read_text()
    assert text.strip() == capsys.readouterr().out.strip()
    assert "| P0 | [45.80] | [40.83] |" in text and "| P1 | [45.06] | 41.50 ± 2.12 (2) [41.93] |" in text
    assert "60.00 ± 0.00 (2) [65.2] | [41.6] | 12.50 ± 0.00 (2) [15.0]" in text  # medium: None in both results
    assert "not legible" in text and "| P1 | 50.00 [2000] |" in text
    assert "100x, seed 2: P1 = P2" in text and "5 of " in text and "commit: abc" in text
    assert "Not the paper's setting" not in text
    rows = json.loads((tmp_path / "report.json").read_text())["tables"]["fig2"]
    assert rows[0] == {"row": "P1", "column": "100x", "published": "2000", "ours": [50.0]}
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 5


def test_a_report_says_what_is_not_the_papers(tmp_path, capsys):
    stage("reproduce", "report", "3a", "--source", "synthetic10", "--scale", "day", "--out", tmp_path)
    assert "**Not the paper's setting**: source synthetic10, source_epochs 300" in capsys.readouterr().out


def test_figure_1_is_the_tau_of_the_stages_accuracies(tmp_path, capsys):
    argv = ["report", "fig1", "--seeds", "1", "--out", str(tmp_path)]
    plan, _ = make_plan(reproduce.parse_args(argv))
    for dataset, ratio, accuracies in (("cifar10", 1, (1, 2, 3)), ("cifar100", 100, (1, 3, 2))):
        name, entry = f"rank_{dataset}_{ratio}x_s0", {"dataset": dataset, "imbalance": ratio, "seed": 0}
        finish(plan, tmp_path, name, {})
        lines = [json.dumps({**entry, "arch": arch, "accuracy": a}) for arch, a in zip("abc", accuracies, strict=True)]
        (tmp_path / name / "accuracies.jsonl").write_text("\n".join(lines))
    stage("reproduce", *argv)
    assert json.loads((tmp_path / "report.json").read_text())["tables"]["fig1"]["tau"][0][1] == pytest.approx(1 / 3)


def test_the_cost_of_a_plan(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reproduce, "speed", lambda step, args: 1000.0)
    argv = ["--scale", "minutes", "--seeds", 1, "--ratios", 100, "--source", "synthetic10", "--target", "synthetic100"]
    stage("reproduce", "cost", "3a", "fig2", *argv, "--out", tmp_path)
    *steps, total = capsys.readouterr().out.splitlines()
    million = {step[:25].strip(): float(step[25:].split()[0]) for step in steps}
    target = sum(int(480 * 0.01 ** (c / 99)) for c in range(100))  # 20 images per class are held out
    expected = {"super-net step": 6 * 48000 + (12 + 24) * target, "P1 step": 12 * target, "scoring": 4 * 5 * 12 * 3000,
                "sub-net step": 4 * 16 * target}  # fmt: skip
    assert million == {kind: pytest.approx(images / 1e6, abs=0.006) for kind, images in expected.items()}
    hours = sum(expected.values()) / 1000 / 3600
    assert total.startswith("12 runs") and float(total.split()[-2]) == pytest.approx(hours, abs=0.006)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["list", "3c"], "unknown table '3c'"),
        (["run", "--shard", "3/2"], "invalid shard value: '3/2'"),
        (["run", "--seeds", "0"], "--seeds: must be at least 1"),
        (["list", "--source", "nowhere"], "nowhere"),
        (["list", "6", "--val-images", "60000"], "--val-images 60000 is more"),
        (["list", "6", "--ratios", "1", "--target", "cifar10", "--source-epochs", "1"], "two different runs"),
        (
            ["list", "--scale", "study", "--source", "synthetic100", "--target", "synthetic10", "--space", "darts"],
            "the study needs --space nats",
        ),
    ],
)
def test_a_mistake_is_one_line(argv, message, tmp_path):
    assert message in refused("reproduce", *argv, "--out", tmp_path / "r")


# The whole


class Finished:
    """A process that has ended."""

    def wait(self):
        return 0


def test_quick_runs_resumes_and_reports(images, tmp_path, monkeypatch, capsys):
    """The source super-net is a process of its own. The other stages run in this one, which has imported torch already."""
    argv = ["--source", images, "--target", images, "--ratios", 5, "--channels", 4, "--source-epochs", 1, "--adapt-epochs", 1,
            "--target-epochs", 1, "--subnet-epochs", 1, "--generations", 1, "--population", 2,
            "--val-images", 12, "--out", tmp_path / "quick"]  # fmt: skip
    processes, real = [], runner.start

    def start(words, log, environment):
        if not processes:
            processes.append(real(words, log, environment))
            return processes[0]
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", words)
            stage(words[0].removesuffix(".py"), *words[1:])
        return Finished()

    monkeypatch.setattr(runner, "start", start)
    stage("reproduce", "quick", *argv)
    report = capsys.readouterr().out.partition("# ")[2]
    rows = [line.split("|")[1].strip() for line in report.splitlines() if line.startswith("| P")]
    assert rows == ["P0", "P1", "P2", "P3", "P1", "P2", "P3"]  # Table 6, Figure 2
    again = command("reproduce.py", "quick", *argv)
    assert again.returncode == 0 and again.stdout.startswith("12 of 12 runs are already finished"), again.stderr
    assert again.stdout.endswith(report)
