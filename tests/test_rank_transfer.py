"""Which architectures compute the same; accuracies of many architectures, alone and inside a super-net."""

import itertools
import json
import random
import subprocess
import sys

import pytest
import torch
from conftest import ENVIRONMENT, ROOT, SMALL, refused, stage, two_ranks

import rank_transfer
from common import nats, runtime, spaces

ALL = list(itertools.product(range(5), repeat=6))
QUICK = [*SMALL, "--warmup", 0, "--batch-size", 32]
ARCH = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|nor_conv_1x1~1|skip_connect~2|"


def accuracies(folder):
    return [json.loads(line) for line in (folder / "accuracies.jsonl").read_text().splitlines()]


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


@pytest.fixture(scope="module")
def canonical():
    """nats.canonical of all architectures: (function, edges with an operation that counts)."""
    return {arch: nats.canonical(arch) for arch in ALL}


def test_distinct_against_the_published_count(canonical):
    """6,466 and 12,751 are NAS-Bench-201's figures. What its rule calls the same is the same here, unless the cells differ in
    how many convolutions they have: its rule does not tell one convolution that is used twice from two."""
    assert len({published_string(a, True) for a in ALL}) == 6466
    assert len({published_string(a, False) for a in ALL}) == 12751
    assert len({function for function, _ in canonical.values()}) == 5044
    groups = {}
    for a in ALL:
        groups.setdefault(published_string(a, True), []).append(a)
    for group in groups.values():
        for a in group[1:]:
            (function, edges), (other_function, other_edges) = canonical[a], canonical[group[0]]
            assert function == other_function or len(edges) != len(other_edges)


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


def test_equal_functions_give_equal_outputs(canonical):
    """Each of 45 architectures of 149 M and 45 others against another of its function, with weights copied edge by edge."""
    groups = {}
    for arch in ALL:
        groups.setdefault(canonical[arch][0], []).append(arch)
    rng = random.Random(0)
    some = rank_transfer.of_mmacs(149)[::3] + rng.sample(ALL, 45)
    images, compared = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0)), 0
    for arch in some:
        function, edges = canonical[arch]
        other = rng.choice(groups[function])
        cells = [nats.Cell(4, a, affine=True).eval() for a in (arch, other)]
        for edge, other_edge in zip(edges, canonical[other][1], strict=True):
            cells[1].edges[other_edge].load_state_dict(cells[0].edges[edge].state_dict())
        torch.testing.assert_close(cells[0](images), cells[1](images), rtol=1e-4, atol=1e-4)
        compared += arch != other and bool(edges)
    assert compared > 30


@pytest.mark.parametrize(
    ("arch", "live", "longest"),
    [
        ((3, 3, 3, 3, 3, 3), 54, 3),
        ((3, 0, 3, 0, 0, 2), 19, 3),
        ((3, 3, 1, 0, 0, 1), 18, 1),  # through node 1 and a skip, or straight to node 2
        ((3, 3, 3, 2, 0, 0), 1, 1),  # nodes 1 and 2 are not read
        ((0, 0, 3, 0, 0, 3), 0, -1),  # convolutions of nothing
        ((1, 0, 0, 0, 4, 0), 0, 0),
    ],
)
def test_trivial_scores_by_hand(arch, live, longest):
    assert nats.trivial_scores(arch) == {"live convolutions": live, "longest convolution path": longest}


def test_the_135_of_149_mmacs_are_enumerated():
    found = rank_transfer.of_mmacs(149)  # section 3.2; four 3x3 convolutions and no 1x1
    assert found == [a for a in ALL if a.count(3) == 4 and a.count(2) == 0] and len(found) == 135
    assert len(rank_transfer.distinct(found)) == 93


@pytest.mark.parametrize("name", ("nats", "darts", "shufflenet"))
def test_a_random_set_is_always_the_same(name):
    few, many = (rank_transfer.at_random(spaces.space(name), n) for n in (5, 50))
    assert many[:5] == few and len(set(many)) == 50


def test_a_random_set_is_at_most_the_space():
    assert set(rank_transfer.at_random(nats, 15626)) == set(ALL)


# Accuracies


@pytest.mark.parametrize(
    ("space", "arch", "loss", "how"),
    [
        ("nats", ARCH, "CE-DRW", ["--warmup", 2, "--beta", 0.5, "--weight-decay", 0.1, "--momentum", 0.5, "--clip", 0.5]),
        ("resnet32", "resnet32", "LDAM-DRW", ["--warmup", 0, "--precision", "bf16"]),
    ],
)
def test_a_unit_is_what_retrain_reports(space, arch, loss, how, images, tmp_path, monkeypatch):
    real, trained = rank_transfer.train_subnet, []
    monkeypatch.setattr(rank_transfer, "train_subnet", lambda *args: trained.append(real(*args)) or trained[-1])
    training = [*SMALL, "--batch-size", 32, "--epochs", 2, "--val-per-class", 2, "--data-seed", 4, "--loss", loss, *how]
    (tmp_path / "archs.txt").write_text(f"{arch}\n\n{arch}\n")
    stage("rank_transfer", *training, "--archs", tmp_path / "archs.txt", "--space", space, "--datasets", f"{images}:1",
          f"{images}:6", "--seeds", 3, 4, "--out", tmp_path / "r")  # fmt: skip
    found = accuracies(tmp_path / "r")
    assert [(line["method"], line["imbalance"], line["seed"]) for line in found] == [
        ("stand-alone", 1, 3), ("stand-alone", 6, 3), ("stand-alone", 1, 4), ("stand-alone", 6, 4),
    ]  # fmt: skip
    for line, net in zip(found[::3], trained[::3], strict=True):
        out = tmp_path / f"{line['imbalance']}_{line['seed']}"
        stage("retrain", *training, "--arch", line["arch"], "--dataset", images, "--imbalance", line["imbalance"],
              "--seed", line["seed"], "--out", out)  # fmt: skip
        expected = json.loads((out / "result.json").read_text())["accuracy"]
        assert {name: line.get(name, line["accuracy"]) for name in expected} == expected
        weights = runtime.load_checkpoint(out / "model.pt", "sub-net")["net"]
        assert all(torch.equal(weight, weights[name]) for name, weight in net.state_dict().items())
        found = {"accuracy", "balanced", "many", "medium", "few", "device", "commit"}
        assert line.keys() == {"method", *rank_transfer.UNIT, *found}
        assert line["device"].startswith("cpu: ")


@pytest.mark.parametrize("how", [(), ("--own-classifier",)])
def test_scores_inside_a_super_net_are_those_of_search(supernet, tmp_path, how):
    stage("search", "--supernet", supernet, "--generations", 2, "--population", 6, "--crossovers", 3, "--mutations", 3,
          "--bn-images", 40, *how, "--seed", 5, "--out", tmp_path / "q")  # fmt: skip
    searched = [json.loads(line) for line in (tmp_path / "q/scores.jsonl").read_text().splitlines()]
    (tmp_path / "archs.txt").write_text("".join(line["arch"] + "\n" for line in searched))
    stage("rank_transfer", "--supernet", supernet, "--archs", tmp_path / "archs.txt", "--bn-images", 40, "--seeds", 5,
          *how, "--out", tmp_path / "r")  # fmt: skip
    found = accuracies(tmp_path / "r")
    assert [(line["arch"], line["accuracy"]) for line in found] == [(line["arch"], line["accuracy"]) for line in searched]
    assert {(line["method"], line["imbalance"], line["seed"]) for line in found} == {("source", 1, 0)}
    assert len({line["accuracy"] for line in found}) > 1


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    """(arguments, folder) of a run of 8 units on one rank."""
    argv = [*QUICK, "--epochs", 1, "--archs", "random:4", "--datasets", f"{images}:1", f"{images}:5", "--out"]
    out = tmp_path_factory.mktemp("finished")
    stage("rank_transfer", *argv, out)
    return argv, out


def test_killed_and_started_again_on_two_ranks_it_trains_what_is_missing(finished, tmp_path, capsys):
    argv, whole = finished
    call = [sys.executable, "rank_transfer.py", *map(str, argv), tmp_path]
    process = subprocess.Popen(call, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("3/8"):
            break
    process.kill()
    process.wait()
    with open(tmp_path / "units_0.jsonl", "a") as file:
        file.write('{"method": "stand-alone", "arch": "|no')
    before = (tmp_path / "units_0.jsonl").read_text().count("}\n")
    assert 3 <= before < 8 and not (tmp_path / "accuracies.jsonl").exists()
    assert two_ranks("rank_transfer.py", *argv, tmp_path).count(" of rank ") == 8 - before
    assert (tmp_path / "accuracies.jsonl").read_bytes() == (whole / "accuracies.jsonl").read_bytes()
    facts = [json.loads((out / "result.json").read_text()) for out in (tmp_path, whole)]
    assert all((f.pop("units"), f.pop("architectures"), *f) == (8, 4, "seconds") for f in facts)
    capsys.readouterr()
    stage("rank_transfer", *argv, tmp_path)
    assert "already finished" in capsys.readouterr().out


def test_units_that_nobody_gathered_are_gathered_without_training(finished, tmp_path, monkeypatch):
    """As when the last rank is killed after its last unit; files of more ranks than there are now count, too."""
    argv, whole = finished
    (tmp_path / "config.json").write_bytes((whole / "config.json").read_bytes())
    lines = (whole / "units_0.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "units_0.jsonl").write_text("".join(lines[:5]))
    (tmp_path / "units_7.jsonl").write_text("".join(lines[5:]))
    monkeypatch.setattr(rank_transfer, "train_subnet", None)
    stage("rank_transfer", *argv, tmp_path)
    for name in ("accuracies.jsonl", "result.json"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()


def test_what_stops_a_unit_is_told_with_its_name(images, tmp_path):
    argv = [*SMALL, "--batch-size", 8, "--lr", 1e30, "--clip", 1e30, "--warmup", 0, "--out", tmp_path]
    message = refused("rank_transfer", *argv, "--archs", "random:1", "--datasets", f"{images}:2")
    assert f"{images} 2x, seed 0, |" in message and "not finite" in message


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--archs", "random:0"], "--archs random:0: there is no such architecture"),
        (["--archs", "random:x"], "there is no file 'random:x'"),
        (["--archs", "mmacs:148"], "--archs mmacs:148: there is no such architecture"),
        (["--archs", "mmacs:149", "--space", "darts"], "--archs mmacs:M, --connected and --distinct are only"),
        (["--archs", "random:3", "--space", "darts", "--distinct"], "--distinct are only for the nats space"),
        (["--archs", "random:3", "--space", "darts", "--connected"], "are only for the nats space"),
        (["--archs", "nowhere.txt"], "nowhere.txt"),
        (["--datasets", "cifar10"], "--datasets: invalid DATASET:R value: 'cifar10'"),
        (["--datasets", "synthetic10:0.5"], "--datasets: must be at least 1"),
        (["--datasets", "cifar11:1"], "unknown dataset 'cifar11'"),
        (["--supernet", "SUPERNET", "--seeds", "1", "2"], "give --seeds one seed"),
        (["--own-classifier"], "give --supernet, too"),
        (["--supernet", "nowhere.pt"], "no file 'nowhere.pt'"),
        (["--supernet", ""], "no file ''"),
        (["--tabulate", "nowhere"], "there is no file 'nowhere'"),
        (["--plot", "tau.png"], "--plot draws the matrix of --tabulate"),
    ],
)
def test_a_mistake_is_one_line(argv, message, supernet, tmp_path):
    argv = [supernet if a == "SUPERNET" else a for a in argv]
    assert message in refused("rank_transfer", *argv, "--out", tmp_path / "r")
