"""The plan of the paper's runs: which there are, their settings, and how they are dealt out."""

import importlib
import itertools
import re
import shlex
import sys
from pathlib import Path

import pytest

import reproduce
from common import darts, paper, runner, spaces
from common.plan import TABLES, make_plan

NATS = "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"
BALANCED = ("--source", "synthetic100", "--target", "synthetic10")


def plan_of(*argv):
    return make_plan(reproduce.parse_args([str(a) for a in ("list", *argv)]))[0]


def parsed(words):
    """The flags that a stage's script understands, with the products of other stages replaced by what is there."""
    script, *argv = words
    fill = NATS if script == "retrain.py" else sys.argv[0]
    argv = [fill if word.endswith("result.json") else word for word in argv]
    return importlib.import_module(script.removesuffix(".py")).parse_args(argv)


def test_the_tables_have_as_many_runs_as_the_paper_says_and_share_them():
    transfer = 1 + 3 * 4 + 1 + 3 * 4 + 4 * 4  # super-nets (P0 has one), searches, sub-nets; four ratios
    runs = {
        "1": 8,
        "3a": transfer,
        "3b": transfer,
        "4": 59,
        "5": 18,
        "6": 22,
        "fig1": 6,
        "fig2": 4,
        "baselines": 8,
        "study": 25,
    }
    assert {table: len(plan_of(table)) for table in TABLES} == {table: 3 * n for table, n in runs.items()}
    assert len({shlex.join(stage.command) for stage in plan_of().values()}) == len(plan_of()) == 402
    assert plan_of("6").keys() < plan_of("--seeds", 3, "3a").keys()
    assert len(plan_of("3a", "4")) == len(plan_of("3a")) + 3 * 9 * 3  # three other P2 at three ratios


def test_every_command_is_the_papers_setting():
    seen = set()
    for script, *argv in (planned.command for planned in plan_of(*(table for table in TABLES if table != "study")).values()):
        args = parsed([script, *argv])
        assert getattr(args, "val_per_class", 0) == 0
        if script == "search.py":
            assert (args.generations, args.population, args.crossovers, args.mutations) == (20, 50, 25, 25)
            continue
        schedule = args.epochs, args.lr, args.milestones, args.reweight_from
        if script == "train_supernet.py":
            assert schedule == (600, 0.1, [400, 500], 400 if args.loss == "CE-DRW" else None)
            seen.add((script, args.dataset, args.imbalance, args.loss))
        elif script == "adapt.py":
            assert schedule == (200, 0.01, [100], 1 if args.procedure == "P1" else 100)
            seen.add((args.procedure, args.dataset, args.imbalance, args.backbone_epochs))
        else:
            assert schedule == (200, 0.1, [160, 180], 160 if args.loss.endswith("-DRW") else None)
            seen.add(
                (script, *(args.datasets if script == "rank_transfer.py" else [(args.dataset, args.imbalance)]), args.loss)
            )
    expected = {("train_supernet.py", "cifar100", r, "CE") for r in (100, 200, 400)}
    for dataset, ratios in (("cifar100", (50, 100, 200, 400)), ("cifar10", (100, 200, 400, 800))):
        expected |= {("train_supernet.py", dataset, r, "CE-DRW") for r in (1, *ratios)}
        expected |= {(p, dataset, r, e) for r in ratios for p, e in (("P1", 0), ("P2", 200))}
        expected |= {("retrain.py", (dataset, r), "CE-DRW") for r in (1, *ratios)}
        expected |= {("retrain.py", (dataset, 100), loss) for loss in ("CE", "BS", "LDAM-DRW")}  # ResNet-32
        expected |= {("rank_transfer.py", (dataset, r), "CE-DRW") for r in (1, 50, 100)}
    expected |= {("P2", "cifar100", r, e) for r in (100, 200, 400) for e in (50, 100, 150)}
    assert seen == expected


def test_a_target_that_is_imbalanced_by_nature_is_trained_as_a_target():
    argv = ["6", "--source-epochs", 6, "--target-epochs", 18, "--ratios", 1, "--source", "synthetic10",
            "--target", "synthetic100", "--seeds", 1]  # fmt: skip
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
    assert spaces.macs_counter(net)() / 1e6 == pytest.approx(mmacs, rel=0.01)


@pytest.mark.parametrize("parts", (1, 4, 9))
@pytest.mark.parametrize("tables", [(), ("study", "4", "5", *BALANCED)])
def test_shards_are_disjoint_complete_and_closed_under_needs(parts, tables):
    plan = plan_of(*tables)
    shards = [runner.shard(plan, i, parts) for i in range(1, parts + 1)]
    assert sorted(name for part in shards for name in part) == sorted(plan) and all(shards)
    for part in shards:
        assert all(need in part for stage in part.values() for need in stage.needs)


@pytest.mark.parametrize("tables", [("4", "fig1"), ("study", "4", "5", *BALANCED)])
def test_needs_come_first_and_seeds_one_after_the_other(tables):
    plan = plan_of(*tables)
    place = {name: i for i, name in enumerate(plan)}
    assert all(place[need] < place[name] for name, stage in plan.items() for need in stage.needs)
    assert [stage.turn for stage in plan.values()] == sorted(stage.turn for stage in plan.values())


def test_every_stage_has_its_seed_and_setting_and_reads_the_products_it_needs():
    shape = {"--image-size": "16", "--space": "shufflenet", "--channels": "8"}
    plan = plan_of(*(table for table in TABLES if table != "study"), *BALANCED, "--cuda-graphs", *sum(shape.items(), ()))
    wanted = {
        "train_supernet.py": ("--image-size", "--space", "--channels"),
        "adapt.py": ("--image-size",),
        "search.py": (),
        "retrain.py": ("--image-size",),
        "rank_transfer.py": ("--image-size", "--channels"),
    }
    for name, ((script, *words), needs, *_) in plan.items():
        read = {Path(word).parent.name for word in words if word.endswith(("supernet.pt", "result.json"))}
        assert read == set(needs), name
        flags = dict(itertools.pairwise(words))
        assert flags["--seeds" if script == "rank_transfer.py" else "--seed"] == re.search(r"_s(\d)", name)[1], name
        assert {flag: flags[flag] for flag in wanted[script]} == {flag: shape[flag] for flag in wanted[script]}, name
        assert ("--cuda-graphs" in words) == (script in ("retrain.py", "rank_transfer.py")), name
        searched = re.fullmatch(r"search_(\w+)", name)
        assert not searched or needs == [searched[1]]
