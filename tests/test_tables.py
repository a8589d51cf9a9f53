"""Tables from accuracies: reading files, tau and its interval, noise ceilings, regret."""

import itertools
import json
import math
import random
import sys
from functools import partial

import numpy as np
import pytest
import scipy.stats
from conftest import stage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common import nats, runtime, spaces, tables
from common.kendall import kendall_tau


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(tables, "interval", partial(tables.interval, resamples=50))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lines(dataset, imbalance, accuracies, seed=0, **more):
    return [
        {"arch": f"a{i:03}", "dataset": dataset, "imbalance": imbalance, "seed": seed, "accuracy": accuracy, **more}
        for i, accuracy in enumerate(accuracies)
    ]


def scipy_tau(x, y):
    return pytest.approx(scipy.stats.kendalltau(x, y).statistic, abs=1e-12)


def tabulate(out, *argv):
    stage("rank_transfer", "--tabulate", *argv, "--out", out)
    return json.loads((out / "tau.json").read_text())


def test_tau_is_scipys_of_mean_accuracies_over_shared_architectures(tmp_path):
    rng = np.random.default_rng(0)
    one, two, inside = (rng.integers(0, 30, n) for n in (135, 135, 100))
    hundred = one + rng.integers(0, 9, 135)
    files = [
        write(tmp_path / "a", lines("d", 1, one.tolist()) + lines("d", 1, two.tolist(), seed=1)),
        write(tmp_path / "b", lines("d", 100, hundred.tolist())),
        write(tmp_path / "c", lines("d", 100, inside.tolist(), method="P1")),
    ]
    found, mean = tabulate(tmp_path / "out", *files), (one + two) / 2
    assert found["labels"] == ["P1 d 100x", "d 1x", "d 100x"] and found["commit"]
    assert found["tau"][1][2] == scipy_tau(mean, hundred) and found["tau"][0][1] == scipy_tau(inside, mean[:100])
    resampled = [scipy.stats.kendalltau(mean[k], hundred[k]).statistic for k in rng.integers(0, 135, (400, 135))]
    interval = found["low"][1][2], found["high"][1][2]
    assert interval == pytest.approx(tuple(np.percentile(resampled, (2.5, 97.5))), abs=0.03)
    assert found["n"] == [[100, 100, 100], [100, 135, 135], [100, 135, 135]]
    assert np.array_equal(found["tau"], np.transpose(found["tau"])) and found["tau"][0][0] == pytest.approx(1)


def test_trivial_baselines_stand_in_every_table(tmp_path, capsys):
    """Accuracies of nats cells follow 3x3 convolutions on the path; with parameters held fixed less of that is left."""
    rng = np.random.default_rng(0)
    archs = [nats.LIGHTEST, *(spaces.sample(nats.CHOICES, rng) for _ in range(7))]  # the first is not connected
    live, length = np.array([tuple(nats.trivial_scores(a).values()) for a in archs]).T
    accuracy = np.clip(50 + live / 2 + rng.normal(0, 5, 8), 0, 100)
    parameters = [9 * a.count(3) + a.count(2) for a in archs]
    rows = [{**line, "arch": nats.to_string(a)} for a, line in zip(archs, lines("d", 1, accuracy.tolist()), strict=True)]
    path = write(tmp_path / "f", rows)
    found = tabulate(tmp_path / "out", path)
    computed = ("parameters", "multiply-accumulates", "live convolutions", "longest convolution path")
    assert found["labels"] == ["d 1x", *(f"{name} (computed)" for name in computed)]
    assert found["tau"][0][1:] == [scipy_tau(accuracy, score) for score in (parameters, parameters, live, length)]
    one, fixed = (scipy.stats.kendalltau(x, y).statistic for x, y in ((accuracy, live), (accuracy, parameters)))
    other = scipy.stats.kendalltau(live, parameters).statistic
    partial = (one - fixed * other) / np.sqrt((1 - fixed**2) * (1 - other**2))
    assert found["tau_given_parameters"][0][3] == pytest.approx(partial) and found["tau_given_parameters"][0][1] is None
    assert found["regret"][0][3] == pytest.approx(accuracy.max() - accuracy[live == live.max()].mean())
    assert found["regret"][3][0] is None and "held fixed" in capsys.readouterr().out
    apart = tabulate(tmp_path / "connected", path, "--connected")
    assert apart["n"][0][0] == (length >= 0).sum() == 7


def test_the_noise_ceiling_stands_beside_taus_of_single_seeds(tmp_path):
    """Each pair of different seeds counted by hand. Seeds add noise, so that tau between means is the larger."""
    rng, order = np.random.default_rng(0), np.linspace(20, 60, 40)
    x, y = ({seed: order + rng.normal(0, 12, 40) for seed in (0, 1, 2)} for _ in "xy")
    rows = [line for s in x for line in lines("d", 1, x[s].tolist(), s) + lines("d", 50, y[s].tolist(), s)]
    rows += lines("e", 1, order.tolist())
    result = tables.compare(tables.read([write(tmp_path / "f", rows)]))
    pairs = [(s, t) for s, t in itertools.product(x, y) if s != t]
    assert len(pairs) == 6
    single = np.mean([scipy.stats.kendalltau(x[s], y[t]).statistic for s, t in pairs])
    ceiling = np.mean([scipy.stats.kendalltau(x[s], x[t]).statistic for s, t in ((0, 1), (0, 2), (1, 2))])
    assert result["tau_single"][0, 1] == pytest.approx(single) and result["tau"][0, 1] > single + 0.05
    assert result["tau_single"][0, 0] == pytest.approx(ceiling)
    other = np.mean([scipy.stats.kendalltau(order, x[s]).statistic for s in (1, 2)])  # e has seed 0 alone
    assert result["tau_single"][2, 0] == pytest.approx(other) and np.isnan(result["tau_single"][2, 2])
    found = result["noise_ceiling"]["d 1x"]
    assert found["tau"] == pytest.approx(ceiling) and found["low"] < ceiling < found["high"]
    assert result["noise_ceiling"].keys() == {"d 1x", "d 50x"}
    assert f"{ceiling:.2f} [" in tables.text(result) and f"{single:.2f}" in tables.text(result)


def test_the_bootstrap_interval_holds_the_truth_about_as_often_as_it_says():
    """Two normal variables of correlation 0.5 have tau = 2/pi asin(0.5) = 1/3 (Greiner's relation)."""
    rng, held = np.random.default_rng(1), 0
    for _ in range(100):
        x = rng.normal(size=60)
        y = 0.5 * x + np.sqrt(0.75) * rng.normal(size=60)
        _, low, high = tables.interval(lambda k, x=x, y=y: kendall_tau(x[k], y[k]), 60, resamples=150)
        held += low <= 1 / 3 <= high
    assert 86 <= held <= 99


def test_super_nets_are_resampled_with_an_unbiased_variance():
    scores = np.array([1.0, 2.0, 4.0])
    means = []
    tables.interval(lambda archs, nets: means.append(scores[nets].mean()) or len(archs), 7, 3, resamples=4000)
    assert np.std(means[:-1]) == pytest.approx(scores.std(ddof=1) / np.sqrt(3), rel=0.05)
    assert means[-1] == scores.mean()


def test_an_interval_holds_95_percent():
    """That of a mean is 1.96 standard errors to either side, but for the noise of 1,000 resamples."""
    x = np.linspace(0, 1, 400)
    _, low, high = tables.interval(lambda k: x[k].mean(), 400, resamples=1000)
    assert (high - low) / 2 == pytest.approx(1.96 * x.std() / 20, rel=0.09)


def test_the_order_of_files_and_lines_does_not_matter(tmp_path):
    rng = np.random.default_rng(0)
    rows = [line for ratio in (1, 50, 100) for s in (0, 1) for line in lines("d", ratio, rng.random(9).tolist(), seed=s)]
    expected = tables.read([write(tmp_path / "a", rows)])
    random.Random(0).shuffle(rows)
    parts = [write(tmp_path / f"{i}", rows[i::3]) for i in range(3)]
    found = tables.read([*parts[::-1], parts[0]])  # a file that is given twice adds nothing
    assert found == expected and list(found) == ["d 1x", "d 50x", "d 100x"]
    assert tables.text(tables.compare(found)) == tables.text(tables.compare(expected))


def test_regret_by_hand(tmp_path, capsys):
    (tmp_path / "f.csv").write_text("arch,truth,guess,tied\na,90,10,5\nb,80,40,7\nc,70,20,7\nd,60,30,7\ne,,99,\n")
    found = tabulate(tmp_path / "out", tmp_path / "f.csv")
    assert found["labels"] == ["guess", "tied", "truth"] and found["n"][0] == [5, 4, 4]
    assert found["regret"][2][0] == 10  # the best of those that both have is b
    assert found["regret"][2][1] == 20  # the best, b, c and d, have 70 on average
    printed = capsys.readouterr().out
    assert "5 architectures\n" in printed and "10.00" in printed


def test_ties_survive_the_mean_over_seeds(tmp_path):
    seeds = [61.3, 55.1, 70.2]
    rows = [line for k in range(3) for line in lines("d", 1, [*np.roll(seeds, k).tolist(), 90, 80], seed=k)]
    rows += lines("e", 1, [1, 2, 3, 5, 4])
    found = tables.compare(tables.read([write(tmp_path / "g", rows)]))
    assert found["tau"][0, 1] == scipy_tau([1, 1, 1, 3, 2], [1, 2, 3, 5, 4])


def test_an_unfinished_run_is_compared_over_the_seeds_that_all_have(tmp_path):
    """Seed 1 is 20 points lower throughout and has only the last three; a mean over what is there would reverse the order."""
    rows = lines("d", 1, [30, 31, 32, 33, 34, 35]) + lines("d", 1, [10, 11, 12, 13, 14, 15], seed=1)[3:]
    found = tables.compare(tables.read([write(tmp_path / "f", rows + lines("e", 1, [1, 2, 3, 4, 5, 6]))]))
    assert found["tau"][0, 1] == 1 and not found["noise_ceiling"] and "single" not in tables.text(found)
    apart = lines("d", 1, [1, 2, 3]) + lines("e", 1, [1, 2]) + lines("e", 1, [0, 0, 3], seed=1)[2:]
    with pytest.raises(ValueError, match="no seed in common"):
        tables.compare(tables.read([write(tmp_path / "g", apart)]))


def test_a_constant_ranking_has_no_tau(tmp_path, capsys):
    (tmp_path / "f.csv").write_text("arch,x,y\na,1,5\nb,1,6\nc,1,7\n")
    found = tabulate(tmp_path / "out", tmp_path / "f.csv")
    assert found["tau"] == [[None, None], [None, 1]] and "  -" in capsys.readouterr().out


def test_the_heat_map_is_drawn_or_names_what_is_missing(tmp_path, monkeypatch):
    path, picture = tmp_path / "f.csv", tmp_path / "f.png"
    path.write_text("arch,x,y\na,1,5\nb,2,6\nc,3,4\n")
    pytest.importorskip("matplotlib")
    tabulate(tmp_path / "out", path, "--plot", picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(runtime.UserError, match="pip install matplotlib"):
        tabulate(tmp_path / "none", path, "--plot", picture)
    assert (tmp_path / "none/tau.json").exists()


GOOD = '{"arch": "a", "dataset": "d", "imbalance": 1, "seed": 0, "accuracy": 5}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + GOOD.replace("5}", "6}"), "line 2: d 1x, seed 0, a is 6 here and 5 before"),
        (GOOD + GOOD.replace('"seed": 0, ', ""), "line 2: .*: expected JSON with arch, dataset, imbalance, seed, accuracy"),
        (GOOD + GOOD[:30], "line 2: .*: expected JSON"),
        (GOOD + '{"a":' * 100000, "line 2: .*: expected JSON"),
        (GOOD.replace("5}", "NaN}"), "line 1: .* accuracies up to 100"),
        ("name,x\na,1\n", "line 1: 'name,x': expected JSON with .*, or a header 'arch,<setting>,...'"),
        ("arch,x\na,1\n\nb,2,3\n", "line 4: .*: expected 2 cells"),
        ("arch,x\na,1\nb,high\n", "line 3: 'b,high': expected 2 cells, accuracies up to 100"),
        ("arch,x\na,101\n", "line 2: 'a,101': expected 2 cells, accuracies up to 100"),
        ("arch,x\na,1\nb,2\na,3\n", "line 4: x, seed 0, a is 3 here and 1 before"),
        ("arch,x,x\na,1,2\n", "line 2: x, seed 0, a is 2 here and 1 before"),
        ("arch,x\n", "no accuracy in"),
    ],
)
def test_a_wrong_line_is_named(text, message, tmp_path):
    (tmp_path / "file.txt").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        tables.read([tmp_path / "file.txt"])
    assert "file.txt" in str(error.value)


def test_too_few_architectures_are_refused():
    with pytest.raises(ValueError, match="2 architectures are in both"):
        tables.compare({"x": {"a": {0: 1.0}, "b": {0: 2.0}}})


json_values = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers())
json_line = st.fixed_dictionaries({name: json_values | st.integers(1, 3) | st.sampled_from("abc") for name in tables.FIELDS})
csv_row = st.lists(st.sampled_from(["arch", "x", "1", "", '"', "nan"])).map(",".join)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary() | st.lists(json_line.map(json.dumps) | csv_row).map(lambda rows: "\n".join(rows).encode()))
def test_any_file_is_accuracies_or_a_value_error(tmp_path, contents):
    (tmp_path / "f").write_bytes(contents)
    try:
        units = tables.read([tmp_path / "f"])
    except ValueError:
        return
    # A classifier of a path's own may score below zero.
    assert all(-math.inf < a <= 100 for archs in units.values() for seeds in archs.values() for a in seeds.values())
