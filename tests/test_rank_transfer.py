"""Architectures that compute the same; accuracies of many, alone and inside a super-net; the tables."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats
import torch
from conftest import ROOT, SMALL, command, stage

import rank_transfer
from common import nats, runtime, spaces

ALL = list(itertools.product(range(5), repeat=6))
QUICK = [*SMALL, "--epochs", 1, "--warmup", 0, "--batch-size", 32, "--archs", "random:4"]
NAMES = ["|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"]


def units(folder):
    lines = (folder / "accuracies.jsonl").read_text()
    assert lines.endswith("\n")
    return [json.loads(line) for line in lines.splitlines()]


def refused(*argv):
    with pytest.raises(runtime.UserError) as error:
        stage("rank_transfer", *argv)
    return str(error.value)


# Which architectures


def published_string(arch, zeros):
    """The rule by which Dong & Yang (2020) count unique cells of NAS-Bench-201, the same space."""
    nodes = ["0"]
    for node in (1, 2, 3):
        terms = []
        for source in range(node):
            name = nats.OPERATIONS[arch[nats.EDGES.index((node, source))]]
            if zeros and (name == "none" or nodes[source] == "#"):
                terms.append("#")
            else:
                terms.append(nodes[source] if name == "skip_connect" else f"({nodes[source]})@{name}")
        nodes.append("+".join(sorted(terms)))
    return nodes[-1]


def test_distinct_functions_against_the_published_count():
    """6,466 and 12,751 are NAS-Bench-201's figures. What its rule calls the same is the same here, unless a convolution is
    used twice there and another has its place: the rule does not tell one from two."""
    assert len({published_string(a, True) for a in ALL}) == 6466
    assert len({published_string(a, False) for a in ALL}) == 12751
    functions = {a: nats.canonical(a)[0] for a in ALL}
    assert len(set(functions.values())) == 5044
    groups = {}
    for a in ALL:
        groups.setdefault(published_string(a, True), []).append(a)
    for group in groups.values():
        for a in group[1:]:
            assert functions[a] == functions[group[0]] or len(nats.canonical(a)[1]) != len(nats.canonical(group[0])[1])


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ((0, 3, 3, 1, 0, 0), (0, 0, 0, 1, 0, 0), True),  # node 2 is not read
        ((0, 0, 3, 1, 3, 0), (0, 0, 0, 1, 0, 0), True),  # convolutions of nothing
        ((3, 0, 1, 0, 0, 1), (0, 3, 0, 0, 0, 1), True),  # by node 1 and a skip, or straight to node 2
        ((4, 0, 4, 0, 0, 1), (0, 4, 0, 0, 0, 4), True),  # pooled twice
        ((1, 1, 1, 0, 0, 4), (4, 4, 1, 0, 0, 1), True),  # the pool of a sum, the sum of pools
        ((3, 0, 1, 0, 1, 1), (3, 3, 0, 0, 1, 1), False),  # one convolution twice, or two
        ((3, 0, 2, 0, 0, 1), (2, 0, 3, 0, 0, 1), False),  # 3x3 before 1x1, or after
    ],
)
def test_what_computes_the_same(one, other, same):
    assert (nats.canonical(one)[0] == nats.canonical(other)[0]) == same


def test_equal_functions_give_equal_outputs():
    """Every architecture of the 135 and 65 others against another of its function, with weights copied edge for edge."""
    groups = {}
    for arch in ALL:
        groups.setdefault(nats.canonical(arch)[0], []).append(arch)
    rng = random.Random(0)
    some = rank_transfer.of_mmacs("nats", 149) + rng.sample(ALL, 65)
    images, compared = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0)), 0
    for arch in some:
        function, edges = nats.canonical(arch)
        other = rng.choice(groups[function])
        cells = [nats.Cell(4, a, affine=True).eval() for a in (arch, other)]
        for mine, its in zip(edges, nats.canonical(other)[1], strict=True):
            cells[1].edges[its].load_state_dict(cells[0].edges[mine].state_dict())
        torch.testing.assert_close(cells[0](images), cells[1](images), rtol=1e-4, atol=1e-4)
        compared += arch != other and bool(edges)
    assert compared > 60


def test_the_135_of_149_mmacs_are_enumerated():
    found = rank_transfer.of_mmacs("nats", 149)  # section 3.2; four 3x3 convolutions and no 1x1
    assert found == [a for a in ALL if a.count(3) == 4 and a.count(2) == 0] and len(found) == 135
    assert len(rank_transfer.distinct_functions("nats", found)) == 93


@pytest.mark.parametrize("name", spaces.SPACES)
def test_a_random_set_is_always_the_same(name):
    few, many = rank_transfer.at_random(name, 5), rank_transfer.at_random(name, 50)
    assert many[:5] == few and len(set(many)) == 50
    if name == "nats":
        assert set(rank_transfer.at_random(name, 15625)) == set(ALL)


# Accuracies


def test_a_unit_is_what_retrain_reports(images, tmp_path):
    training = [*SMALL, "--epochs", 3, "--warmup", 0, "--batch-size", 32, "--val-per-class", 2, "--data-seed", 4]
    (tmp_path / "archs.txt").write_text(
        "# one\n|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|nor_conv_1x1~1|skip_connect~2|\n"
    )
    stage("rank_transfer", *training, "--archs", tmp_path / "archs.txt", "--datasets", f"{images}:1", f"{images}:6",
          "--seeds", 3, 4, "--out", tmp_path / "r")  # fmt: skip
    found = units(tmp_path / "r")
    assert [(line["method"], line["imbalance"], line["seed"]) for line in found] == [
        ("stand-alone", 1, 3), ("stand-alone", 6, 3), ("stand-alone", 1, 4), ("stand-alone", 6, 4),
    ]  # fmt: skip
    for line in found:
        out = tmp_path / f"{line['imbalance']}_{line['seed']}"
        stage("retrain", *training, "--arch", line["arch"], "--dataset", images, "--imbalance", line["imbalance"],
              "--seed", line["seed"], "--out", out)  # fmt: skip
        assert json.loads((out / "result.json").read_text())["accuracy"]["all"] == line["accuracy"]


def test_scores_inside_a_super_net_are_those_of_search(supernet, tmp_path):
    stage("search", "--supernet", supernet, "--generations", 2, "--population", 6, "--crossovers", 3, "--mutations", 3,
          "--bn-images", 40, "--seed", 5, "--out", tmp_path / "q")  # fmt: skip
    searched = [json.loads(line) for line in (tmp_path / "q/scores.jsonl").read_text().splitlines()]
    (tmp_path / "archs.txt").write_text("".join(line["arch"] + "\n" for line in searched))
    stage("rank_transfer", "--supernet", supernet, "--archs", tmp_path / "archs.txt", "--bn-images", 40, "--seeds", 5,
          "--out", tmp_path / "r")  # fmt: skip
    found = units(tmp_path / "r")
    assert {line["arch"]: line["accuracy"] for line in found} == {line["arch"]: line["accuracy"] for line in searched}
    assert {(line["method"], line["imbalance"], line["seed"]) for line in found} == {("source", 1, 0)}
    assert len(set(line["accuracy"] for line in found)) > 1


def test_killed_and_started_again_on_two_ranks_it_trains_what_is_missing(images, tmp_path):
    argv = ["rank_transfer.py", *QUICK, "--datasets", f"{images}:1", f"{images}:5", "--seeds", 0, 1, "--out"]
    argv = [str(a) for a in argv]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    assert command(*argv, whole).returncode == 0
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(
        [sys.executable, *argv, str(killed)], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if line.startswith("3/16"):
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = len(list((killed / "units").glob("*.json")))
    assert 3 <= before < 16 and len(units(killed)) >= 2
    done = command(*argv, killed, ranks=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" left: ") == 16 - before
    assert units(killed) == units(whole) and len(units(whole)) == 16
    assert not (killed / "units").exists()
    again = command(*argv, killed)
    assert again.returncode == 0 and "already finished" in again.stdout


# Tables


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lines(dataset, imbalance, accuracies, seed=0, **more):
    return [
        {"arch": f"a{i:03}", "dataset": dataset, "imbalance": imbalance, "seed": seed, "accuracy": accuracy, **more}
        for i, accuracy in enumerate(accuracies)
    ]


def tabulate(out, *argv):
    stage("rank_transfer", "--tabulate", *argv, "--out", out)
    return json.loads((out / "tau.json").read_text())


def test_tau_is_scipys_of_mean_accuracies_over_shared_architectures(tmp_path):
    rng = np.random.default_rng(0)
    one, two, inside = rng.integers(0, 30, 135), rng.integers(0, 30, 135), rng.integers(0, 30, 100)
    files = [
        write(tmp_path / "a", lines("d", 1, one.tolist()) + lines("d", 1, two.tolist(), seed=1)),
        write(tmp_path / "b", lines("d", 100, (one + rng.integers(0, 9, 135)).tolist())),
        write(tmp_path / "c", lines("d", 100, inside.tolist(), method="P1")),
    ]
    found = tabulate(tmp_path / "out", *files)
    assert found["labels"] == ["P1 d 100x", "d 1x", "d 100x"]
    hundred = [line["accuracy"] for line in map(json.loads, files[1].read_text().splitlines())]
    mean = (one + two) / 2
    assert found["tau"][1][2] == pytest.approx(scipy.stats.kendalltau(mean, hundred).statistic, abs=1e-12)
    assert found["tau"][0][1] == pytest.approx(scipy.stats.kendalltau(inside, mean[:100]).statistic, abs=1e-12)
    assert found["n"] == [[100, 100, 100], [100, 135, 135], [100, 135, 135]]
    assert np.array_equal(found["tau"], np.transpose(found["tau"])) and found["tau"][0][0] == pytest.approx(1)
    ceiling = found["noise_ceiling"]
    assert ceiling.keys() == {"d 1x"}
    assert ceiling["d 1x"]["tau"] == pytest.approx(scipy.stats.kendalltau(one, two).statistic, abs=1e-12)


def test_the_bootstrap_interval_holds_the_truth_about_as_often_as_it_says(monkeypatch):
    """Two normal variables of correlation 0.5 have tau = 2/pi asin(0.5) = 1/3 (Greiner's relation)."""
    monkeypatch.setattr(rank_transfer, "RESAMPLES", 200)
    rng, held = np.random.default_rng(1), 0
    for _ in range(100):
        x = rng.normal(size=60)
        y = 0.5 * x + np.sqrt(0.75) * rng.normal(size=60)
        _, low, high = rank_transfer.interval(lambda k, x=x, y=y: rank_transfer.kendall_tau(x[k], y[k]), 60)
        held += low <= 1 / 3 <= high
    assert 86 <= held <= 99


def test_the_order_of_files_and_lines_does_not_matter(tmp_path):
    rng = np.random.default_rng(0)
    rows = [line for ratio in (1, 50, 100) for s in (0, 1, 2) for line in lines("d", ratio, rng.random(9).tolist(), seed=s)]
    found = tabulate(tmp_path / "out", write(tmp_path / "a", rows), "--top", 3)
    random.Random(0).shuffle(rows)
    parts = [write(tmp_path / f"{i}", rows[i::3]) for i in range(3)]
    again = tabulate(tmp_path / "out2", *parts[::-1], parts[0], "--top", 3)  # a file given twice adds nothing
    assert {k: found[k] for k in found if k != "command"} == {k: again[k] for k in again if k != "command"}
    assert found["labels"] == ["d 1x", "d 50x", "d 100x"]


def test_best_k_found_and_regret_by_hand(tmp_path, capsys):
    (tmp_path / "f.csv").write_text("arch,truth,guess,tied\na,90,10,5\nb,80,40,7\nc,70,20,7\nd,60,30,7\ne,,99,\n")
    found = tabulate(tmp_path / "out", tmp_path / "f.csv", "--top", 2)
    assert found["labels"] == ["guess", "tied", "truth"] and found["top"] == 2
    assert (
        found["found"][2][0] == 1 and found["regret"][2][0] == 10
    )  # the guess's best are b and d, of a and b; its favourite b
    assert found["regret"][2][1] == 20  # its favourites b, c and d have 70 on average
    assert found["n"][0] == [5, 4, 4]
    told = capsys.readouterr().out
    assert "5 architectures\n" in told and "1; 10.00" in told


def test_tables_say_how_many_functions_are_distinct(tmp_path, capsys):
    archs = [
        "|skip_connect~0|+|none~0|none~1|+|none~0|skip_connect~1|none~2|",
        "|none~0|+|skip_connect~0|none~1|+|none~0|none~1|skip_connect~2|",
    ]
    archs += ["|nor_conv_3x3~0|+|none~0|none~1|+|none~0|skip_connect~1|none~2|", *NAMES]
    (tmp_path / "f.csv").write_text("arch,x,y\n" + "".join(f"{a},{i},{i * i}\n" for i, a in enumerate(archs)))
    assert tabulate(tmp_path / "out", tmp_path / "f.csv")["tau"][0][1] == 1
    assert "4 architectures, 3 distinct functions" in capsys.readouterr().out


def test_a_constant_ranking_has_no_tau(tmp_path, capsys):
    (tmp_path / "f.csv").write_text("arch,x,y\na,1,5\nb,1,6\nc,1,7\n")
    assert tabulate(tmp_path / "out", tmp_path / "f.csv")["tau"] == [[None, None], [None, 1]]
    assert "  -" in capsys.readouterr().out


def test_a_plot_is_drawn_or_how_to_get_it_is_told(tmp_path, monkeypatch):
    path, argv = tmp_path / "f.csv", ["--plot", tmp_path / "f.png"]
    path.write_text("arch,x,y\na,1,5\nb,2,6\nc,3,4\n")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        pass
    else:
        tabulate(tmp_path / "out", path, *argv)
        assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "pip install matplotlib" in refused("--tabulate", path, *argv, "--out", tmp_path / "none")
    assert (tmp_path / "none/tau.json").exists()


def test_an_unfinished_run_is_compared_over_the_seeds_that_all_have(tmp_path):
    """Seed 1 is 20 points lower throughout and has the last three alone; a stray seed 2 has one. The order is one order."""
    rows = lines("d", 1, [30, 31, 32, 33, 34, 35]) + lines("d", 1, [10, 11, 12, 13, 14, 15], seed=1)[3:]
    rows += lines("d", 1, [90], seed=2) + lines("e", 1, [1, 2, 3, 4, 5, 6])
    found = tabulate(tmp_path / "out", write(tmp_path / "f", rows))
    assert found["tau"][0][1] == 1 and found["noise_ceiling"]["d 1x"]["n"] == 3
    apart = lines("d", 1, [1, 2, 3]) + lines("e", 1, [1, 2]) + lines("e", 1, [0, 0, 3], seed=1)[2:]
    assert "no seed in common" in refused("--tabulate", write(tmp_path / "g", apart), "--out", tmp_path / "o")


def test_ties_have_equal_parts_of_the_best_and_survive_the_mean(tmp_path):
    (tmp_path / "f.csv").write_text("arch,truth,chance\na,90,10\nb,80,10\nc,70,10\nd,60,10\n")
    found = tabulate(tmp_path / "out", tmp_path / "f.csv", "--top", 2)
    assert found["labels"] == ["chance", "truth"] and found["found"][1][0] == 1 and found["regret"][1][0] == 15
    seeds = [61.3, 55.1, 70.2]
    rows = [line for k in range(3) for line in lines("d", 1, [*np.roll(seeds, k).tolist(), 90, 80], seed=k)]
    rows += lines("e", 1, [1, 2, 3, 5, 4])
    tau = tabulate(tmp_path / "out", write(tmp_path / "g", rows))["tau"][0][1]
    assert tau == pytest.approx(scipy.stats.kendalltau([1, 1, 1, 3, 2], [1, 2, 3, 5, 4]).statistic, abs=1e-12)


GOOD = '{"arch": "a", "dataset": "d", "imbalance": 1, "seed": 0, "accuracy": 5}\n'


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (GOOD + GOOD.replace("5}", "6}"), "line 2: d 1x, seed 0, a is 6 here and 5 before"),
        (GOOD + GOOD.replace('"seed": 0, ', ""), "line 2 has no 'seed'"),
        (GOOD + "{}\n", "line 2 has no 'arch'"),
        (GOOD + GOOD[:30], "line 2 is not JSON"),
        (GOOD.replace("5}", '"5"}'), "line 1: 'accuracy' cannot be \"5\""),
        (GOOD.replace("5}", "NaN}"), "not an accuracy"),
        (GOOD.replace("5}", "true}"), "'accuracy' cannot be true"),
        (GOOD + GOOD.replace('"a"', '"b"'), "share 2 architectures"),
        ("arch,x\na,1\nb,2\n", "share 2 architectures"),
        ("arch,x\na,1\nb,2,3\n", "line 3 has 3 columns"),
        ("arch,x\na,1\nb,nought\n", "line 3: 'nought' is not an accuracy"),
        ("arch,x\na,101\n", "line 2: '101' is not an accuracy"),
        ("arch,x,x\na,1,2\n", "neither JSON lines nor a CSV"),
        ("arch,x\na,1\nb,2\na,3\n", "line 4: x, seed 0, a is 3 here and 1 before"),
        ("", "neither JSON lines nor a CSV"),
        ("arch,x\n", "no accuracy in"),
    ],
)
def test_a_file_that_is_wrong_is_named(text, told, tmp_path):
    path = tmp_path / "file.txt"
    path.write_text(text)
    message = refused("--tabulate", path, "--out", tmp_path / "out")
    assert told in message and ("file.txt" in message or "share" in message)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--archs", "random:0"], "cannot draw 0"),
        (["--archs", "random:15626"], "cannot draw 15626"),
        (["--archs", "random:x"], "mmacs:M, random:N or a file"),
        (["--archs", "mmacs:148"], "no architecture has 148 M"),
        (["--archs", "mmacs:149", "--space", "darts"], "cannot be enumerated"),
        (["--archs", "random:3", "--space", "darts", "--distinct"], "cannot tell functions apart"),
        (["--archs", "nowhere.txt"], "nowhere.txt"),
        (["--datasets", "cifar10"], "dataset:ratio"),
        (["--datasets", "synthetic10:0.5"], "at least 1"),
        (["--datasets", "cifar11:1"], "unknown dataset 'cifar11'"),
        (["--tabulate", "x", "--epochs", "3"], "--tabulate makes no use of --epochs"),
        (["--supernet", "x", "--datasets", "cifar10:1"], "--supernet makes no use of --datasets"),
        (["--top", "3"], "not without --tabulate"),
        (["--supernet", "SUPERNET", "--seeds", "1", "2"], "one of --seeds"),
        (["--supernet", "nowhere.pt"], "no checkpoint 'nowhere.pt'"),
        (["--supernet", ""], "no checkpoint ''"),
        (["--seeds", "-1"], "--seeds must be at least 0"),
        (["--tabulate", "nowhere"], "nowhere"),
    ],
)
def test_a_mistake_is_told(argv, told, supernet, tmp_path):
    assert told in refused(*[supernet if a == "SUPERNET" else a for a in argv], "--out", tmp_path / "r")
