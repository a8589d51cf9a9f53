"""The study: both claims recomputed with scipy, on accuracies in which they are known to hold or not."""

import importlib
import itertools
import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from conftest import ROOT, refused, stage
from test_reproduce import finish

import reproduce
from common import nats, report, study, tables
from common.plan import make_plan

ARCHS = (ROOT / study.ARCHITECTURES).read_text().split()
NOISE = {"P0": 6.0, "P1": 1.0, "P2": 3.0, "P3": 1.0} | dict.fromkeys(study.VARIANTS, 40.0)  # of super-nets


def tau(x, y):
    return scipy.stats.kendalltau(x, y).statistic


def lines():
    """Settings whose rankings follow one of two independent orders, balanced or long-tailed, with noise of each seed."""
    rng, found = np.random.default_rng(0), []
    balanced, tailed = rng.permutation(np.linspace(30, 60, 96)), rng.permutation(np.linspace(20, 50, 96))
    for method, (ratio, _, seeds) in study.SETTINGS.items():
        for seed in seeds:
            accuracies = (balanced if ratio == 1 else tailed) + rng.normal(0, 1, 96)
            entry = {"method": method, "dataset": "d", "imbalance": ratio, "seed": seed}
            found += [{**entry, "arch": arch, "accuracy": a} for arch, a in zip(ARCHS, accuracies, strict=True)]
    for name, noise in NOISE.items():
        for seed in range(5):
            scores, entry = tailed + rng.normal(0, noise, 96), {"method": name, "dataset": "d", "imbalance": 100, "seed": seed}
            found += [{**entry, "arch": arch, "accuracy": a} for arch, a in zip(ARCHS, scores, strict=True)]
    return found


def test_the_architectures_are_96_functions_half_of_them_of_149_million():
    archs = [nats.from_string(text) for text in ARCHS]
    assert len({nats.canonical(arch)[0] for arch in archs}) == len(archs) == 96
    assert all((arch.count(3), arch.count(2)) == (4, 0) for arch in archs[study.SETS["A"]])  # DESIGN: 149.34 M


@pytest.mark.parametrize("name", study.SETS)
def test_both_claims_against_scipy(name, monkeypatch):
    monkeypatch.setattr(tables, "interval", partial(tables.interval, resamples=40))
    archs, everything = ARCHS[study.SETS[name]], lines()
    by = {}
    for line in everything:
        by.setdefault((line["method"], line["seed"]), {})[line["arch"]] = line["accuracy"]
    by = {key: np.array([found[arch] for arch in archs]) for key, found in by.items()}
    rows = {quantity: values for quantity, *values in study.decide(everything, archs)}

    def single(one, other):
        pairs = itertools.product(study.SETTINGS[one][2], study.SETTINGS[other][2])
        return np.mean([tau(by[one, s], by[other, t]) for s, t in pairs if s != t])

    for one, other in (("balanced", "100x"), ("another draw", "100x"), ("100x", "100x"), ("small", "small")):
        assert rows[f"tau({one}, {other})"][0] == pytest.approx(single(one, other))
    value, low, high = rows["tau(balanced, 100x) - tau(another draw, 100x)"]
    assert value == pytest.approx(single("balanced", "100x") - single("another draw", "100x")) and low <= value <= high < 0
    low, high = rows["tau(balanced, 100x) - tau(small, 100x)"][1:]
    assert low < 0 < high  # both are balanced
    value, _, high = rows["tau(small, 100x) - tau(another draw, 100x)"]
    assert value == pytest.approx(single("small", "100x") - single("another draw", "100x")) and high < 0
    for setting, own in (("balanced", "balanced"), ("small", "small"), ("50x", "50x"), ("another draw", "100x")):
        value, low, high = rows[f"tau({setting}, 100x) - joint ceiling"]
        joint = study.joint_ceiling(single(own, own), single("100x", "100x"))
        assert value == pytest.approx(single(setting, "100x") - joint)
        assert low < 0 < high if setting in ("50x", "another draw") else high < 0

    truth = (by["100x", 0] + by["100x", 1]) / 2
    for p in NOISE:
        nets = [by[p, seed] for seed in range(5)]
        assert rows[f"tau of {p}"][0] == pytest.approx(np.mean([tau(truth, net) for net in nets]))
        assert rows[f"regret of {p}"][0] == pytest.approx(np.mean([truth.max() - truth[net.argmax()] for net in nets]))
    assert rows["tau of P1 - tau of P0"][1] > 0 and rows["tau of P1 - tau of P3"][1] < 0 < rows["tau of P1 - tau of P3"][2]
    for variant, of in study.VARIANTS.items():
        value, low, high = rows[f"tau of {of} - tau of {variant}"]
        assert value == pytest.approx(rows[f"tau of {of}"][0] - rows[f"tau of {variant}"][0]) and 0 < low <= value <= high
    for p in study.PROCEDURES:
        alone = [tau(by["100x", seed], by[p, net]) for seed in (0, 1) for net in range(5)]
        assert rows[f"tau with single seeds of {p}"][0] == pytest.approx(np.mean(alone))
        for kind in ("parameters", "live convolutions", "balanced accuracy"):
            less = rows[f"tau of {p}"][0] - rows[f"tau of {kind}"][0]
            assert rows[f"tau of {p} - tau of {kind}"][0] == pytest.approx(less, nan_ok=True)
    mean_balanced = (by["balanced", 0] + by["balanced", 1]) / 2
    assert rows["tau of balanced accuracy"][0] == pytest.approx(tau(truth, mean_balanced))
    parameters = [9 * text.count("3x3~") - 9 * text.count("pool_3x3") + text.count("1x1") for text in archs]
    assert rows["tau of parameters"][0] == pytest.approx(tau(truth, parameters), nan_ok=True)  # all of A have as many
    for name in ("live convolutions", "longest convolution path"):
        counts = [nats.trivial_scores(nats.from_string(text))[name] for text in archs]
        assert rows[f"tau of {name}"][0] == pytest.approx(tau(truth, counts))
    assert rows["regret of a random architecture"][0] == pytest.approx(truth.max() - truth.mean())


def test_the_joint_ceiling_is_what_noise_alone_leaves():
    rng, n = np.random.default_rng(0), 4000
    truth = rng.normal(size=n)
    x, again, y, other = (truth + noise * rng.normal(size=n) for noise in (0.4, 0.4, 1.0, 1.0))
    assert study.joint_ceiling(tau(x, again), tau(y, other)) == pytest.approx(tau(x, y), abs=0.02)
    assert study.joint_ceiling(0.6, 0.6) == pytest.approx(0.6)
    assert study.joint_ceiling(0.6, -0.1) == study.joint_ceiling(-0.2, -0.1) == 0


def test_intervals_are_over_super_nets_too():
    archs, everything = ARCHS[study.SETS["B"]], [line for line in lines() if line["method"] == "100x"]
    for seed, sign in enumerate((1, 1, -1)):  # two super-nets rank exactly as seed 0 does, the third the other way round
        scores = [{**line, "method": "P1", "accuracy": sign * line["accuracy"]} for line in everything if line["seed"] == 0]
        everything += [{**line, "seed": seed} for line in scores]
    (_, tau, low, high), *_ = [row for row in study.decide(everything, archs) if row[0] == "tau of P1"]
    assert 0.2 < tau < 0.34 and low < -0.8 and high > 0.8


def test_an_unfinished_study_compares_super_nets_of_the_same_seeds(monkeypatch):
    monkeypatch.setattr(tables, "interval", partial(tables.interval, resamples=5))
    missing, archs = {"P3": {0}, "P1, every 4": {3, 4}, "P3, CE": {0, 1, 2, 3}}, ARCHS[study.SETS["B"]]
    kept = [line for line in lines() if line["seed"] not in missing.get(line["method"], ())]
    rows = {quantity: value for quantity, value, *_ in study.decide(kept, archs)}
    by = {}
    for line in lines():
        by.setdefault((line["method"], line["seed"]), {})[line["arch"]] = line["accuracy"]
    truth = np.array([by["100x", 0][arch] + by["100x", 1][arch] for arch in archs])

    def mean(name, *seeds):
        return np.mean([tau(truth, [by[name, seed][arch] for arch in archs]) for seed in seeds])

    assert rows["tau of P1"] == pytest.approx(mean("P1", 0, 1, 2, 3, 4))
    assert rows["tau of P3"] == pytest.approx(mean("P3", 1, 2, 3, 4))
    assert rows["tau of P1 - tau of P3"] == pytest.approx(mean("P1", 1, 2, 3, 4) - mean("P3", 1, 2, 3, 4))
    assert rows["tau of P1 - tau of P1, every 4"] == pytest.approx(mean("P1", 0, 1, 2) - mean("P1, every 4", 0, 1, 2))
    assert rows["tau of P3 - tau of P3, CE"] == pytest.approx(mean("P3", 4) - mean("P3, CE", 4))
    none = [line for line in kept if line["method"] != "P3, CE" or line["seed"] != 4]
    assert "tau of P3 - tau of P3, CE" not in {quantity for quantity, *_ in study.decide(none, archs)}


def test_settings_come_first_and_variants_last(tmp_path):
    flags = ["--scale", "study", "--source", "synthetic100", "--target", "synthetic10", "--seeds", "2", "--out", str(tmp_path)]
    plan, _ = make_plan(reproduce.parse_args(["list", "study", *flags]))
    alone = {}
    for (script, *words), *_ in plan.values():
        if "--seeds" in words:
            args = importlib.import_module(script.removesuffix(".py")).parse_args(words)
            ((_, ratio),) = args.datasets
            assert (args.channels, args.cells, args.image_size, args.loss, args.precision) == (8, 2, 16, "CE-DRW", "fp32")
            key = args.method, ratio, args.data_seed, args.epochs, args.warmup, args.val_per_class
            alone[key] = [*alone.get(key, []), *args.seeds]
    assert alone == {  # 12,406 images at 100x and 13,996 at 50x, of 50,000; 1,240 of a class's 5,000 are left of "small"
        ("100x", 100, 0, 20, 1, 0): [0, 1],
        ("balanced", 1, 0, 5, 0, 0): [0, 1],
        ("small", 1, 0, 20, 1, 3760): [0, 1],
        ("another draw", 100, 1, 20, 1, 0): [0],
        ("50x", 50, 0, 18, 1, 0): [0, 1],
    }
    for script, epochs in (("train_supernet.py", {60}), ("adapt.py", {20})):
        trained = [
            importlib.import_module(script[:-3]).parse_args(words) for (name, *words), *_ in plan.values() if name == script
        ]
        assert {(args.epochs, args.image_size) for args in trained} == {(*epochs, 16)}
        if script == "train_supernet.py":
            assert {(args.channels, args.cells, args.warmup, args.sampling) for args in trained} == {(8, 2, 1, "uniform")}
    images = {
        ("--own-classifier" in words, words[words.index("--bn-images") + 1])
        for words, *_ in plan.values()
        if "--bn-images" in words
    }
    assert images == {(False, "2000"), (True, "12406")}
    methods = [command[command.index("--method") + 1] for command, *_ in plan.values() if "--method" in command]
    settings = [method for method, (*_, seeds) in study.SETTINGS.items() for _ in seeds]
    assert methods == settings + 2 * list(study.PROCEDURES) + 2 * list(study.VARIANTS)
    scored = {}
    for name, (command, *_) in plan.items():
        if name.startswith("inside_"):
            key = command[command.index("--supernet") + 1], "--own-classifier" in command
            scored[key] = command[command.index("--method") + 1]
    assert len(scored) == 2 * len(study.PROCEDURES) + 2 * len(study.VARIANTS)  # no super-net is scored twice in one way
    for (supernet, own), method in scored.items():  # with and without classifiers of their own, the same super-nets
        assert own == method.endswith(", own classifier")
        assert not own or scored[supernet, False] == method.removesuffix(", own classifier")
    (every,) = [command for name, (command, *_) in plan.items() if name.startswith("P1_every4") and name.endswith("_s1")]
    assert every[every.index("--features-every") + 1] == "4" and every[every.index("--procedure") + 1] == "P1"


def test_the_page_tells_how_to_use_the_table(tmp_path, monkeypatch, capsys):
    snippet = re.findall(r"```python\n(.*?)```", (ROOT / "results" / "study" / "README.md").read_text(), re.DOTALL)[0]
    monkeypatch.chdir(tmp_path)
    Path("results/study").mkdir(parents=True)
    everything = lines()
    Path("results/study/accuracies.jsonl").write_text("".join(json.dumps(line) + "\n" for line in everything))
    exec(snippet, {})
    by = {}
    for line in everything:
        if line["method"] == "100x":
            by.setdefault(line["arch"], []).append(line["accuracy"])
    truth = np.array([np.mean(by[arch]) for arch in ARCHS])
    score = np.array([nats.trivial_scores(nats.from_string(arch))["live convolutions"] for arch in ARCHS])
    lost = truth.max() - truth[score == score.max()].mean()
    assert [float(number) for number in capsys.readouterr().out.split()] == pytest.approx([tau(truth, score), lost])


def test_what_is_not_there_yet_is_left_out(tmp_path, monkeypatch, capsys):
    """Reports of a study from its first stage to its second setting, with one super-net between them."""
    monkeypatch.setattr(tables, "interval", partial(tables.interval, resamples=20))
    flags = ["--scale", "study", "--source", "synthetic100", "--target", "synthetic10"]
    argv = ["report", "study", *flags, "--out", str(tmp_path)]
    plan, _ = make_plan(reproduce.parse_args(argv))
    stages = {"alone_100x_s0": ("100x", 0), "alone_100x_s1": ("100x", 1),
              "inside_P1_synthetic100_synthetic10_100x_s0": ("P1", 0),
              "alone_balanced_s0": ("balanced", 0), "alone_balanced_s1": ("balanced", 1)}  # fmt: skip
    needs = {"tau(100x, 100x)": 1, "tau of P1 - tau of parameters": 2, "tau(balanced, 100x)": 3, "tau(balanced, balanced)": 4}
    everything = lines()
    for nth, (name, key) in enumerate(stages.items()):
        finish(plan, tmp_path, name, {})
        own = [json.dumps(line) + "\n" for line in everything if (line["method"], line["seed"]) == key]
        Path(tmp_path, name, "accuracies.jsonl").write_text("".join(own))
        stage("reproduce", *argv)
        text = capsys.readouterr().out
        assert [quantity in text for quantity in needs] == [nth >= last for last in needs.values()]
    text = (tmp_path / "report.md").read_text()
    assert "Seeds of 100x: 2; balanced: 2; P1: 1." in text
    (row,) = [line.split(" | ") for line in text.splitlines() if line.startswith("| tau(100x, 100x)")]
    by = {(line["seed"], line["arch"]): line["accuracy"] for line in everything if line["method"] == "100x"}
    for cell, archs in zip(row[1:], (ARCHS[:48], ARCHS[48:]), strict=True):  # columns A and B
        assert cell.startswith(f"{tau(*([by[seed, arch] for arch in archs] for seed in (0, 1))):.2f} [")
    assert "tau of P1 - tau of parameters" in text and "tau of P0" not in text and "small" not in text
    assert len((tmp_path / "accuracies.jsonl").read_text().splitlines()) == 5 * 96
    lost = tmp_path / "alone_100x_s0/accuracies.jsonl"
    lost.unlink()
    assert refused("reproduce", *argv) == f"there is no file '{lost}'"


def test_the_picture_shows_taus_with_their_intervals(tmp_path, monkeypatch):
    figures = pytest.importorskip("matplotlib.figure")
    monkeypatch.setattr(tables, "interval", partial(tables.interval, resamples=20))
    found = {name: study.decide(lines(), ARCHS[of_set]) for name, of_set in study.SETS.items()}
    assert {quantity for panel in study.PANELS.values() for quantity in panel} <= {row[0] for row in found["B"]}
    drawn, save = [], figures.Figure.savefig
    monkeypatch.setattr(figures.Figure, "savefig", lambda self, *args, **how: drawn.append(self) or save(self, *args, **how))
    report.study_picture(found, tmp_path / "study.png")
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")
    for axes, panel in zip(drawn[0].axes, study.PANELS.values(), strict=True):
        for bars, rows in zip(axes.containers, found.values(), strict=True):
            ends = [[x for x, _ in bar] for bar in bars.lines[2][0].get_segments() if len(bar)]  # a NaN has no bar
            expected = {quantity: [low, high] for quantity, _, low, high in rows if not np.isnan(low)}
            np.testing.assert_allclose(ends, [expected[quantity] for quantity in panel if quantity in expected])
