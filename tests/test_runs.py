"""Runs that are interrupted, finished or repeated: what is kept, resumed and refused."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ENVIRONMENT, ROOT, interrupted, refused, stage, weights
from test_stages import ARCH, SEARCH, TRAIN, epoch_losses, equal, result, untimed

from common import runtime, scoring, spaces


@pytest.mark.parametrize("sampling", spaces.SAMPLINGS)
def test_resumed_after_any_epoch_it_ends_the_same(sampling, images, tmp_path):
    argv = ["train_supernet", "--dataset", images, "--imbalance", 5, *TRAIN, "--sampling", sampling, "--epochs", 3, "--out"]
    stage(*argv, tmp_path / "whole")
    for epoch in (1, 2):
        out = tmp_path / str(epoch)
        with interrupted(after_epoch=epoch):
            stage(*argv, out)
        stage(*argv, out)
        assert equal(weights(tmp_path / "whole"), weights(out)) and len(epoch_losses(out)) == 3


def test_killed_in_the_middle_it_ends_the_same(images, tmp_path, capsys):
    argv = ["retrain.py", "--arch", ARCH, "--dataset", images, "--imbalance", 2, *TRAIN, "--epochs", 40, "--out"]
    killed = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, *map(str, argv), str(killed)], cwd=ROOT, env=ENVIRONMENT)
    while not (killed / "metrics.jsonl").exists():
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "result.json").exists()
    for out in (killed, tmp_path / "whole"):
        stage("retrain", *argv[1:], out)
    assert "resumed after epoch" in capsys.readouterr().out
    assert untimed(tmp_path / "whole") == untimed(killed)


def test_search_resumes_with_the_scores_it_has(supernet, tmp_path, monkeypatch):
    argv = ["search", "--supernet", supernet, *SEARCH, "--out"]
    stage(*argv, tmp_path / "whole")
    real, calls = scoring.scorer, []

    def scorer(*a):
        score = real(*a)

        def counted(arch):
            calls.append(arch)
            if len(calls) == 9:
                raise KeyboardInterrupt
            return score(arch)

        return counted

    monkeypatch.setattr(scoring, "scorer", scorer)
    with pytest.raises(KeyboardInterrupt):
        stage(*argv, tmp_path / "q")
    stage(*argv, tmp_path / "q")
    assert len(calls) == 15 and len(set(calls)) == 12  # the second generation, of six, was begun twice
    assert untimed(tmp_path / "whole") == untimed(tmp_path / "q")


def test_a_finished_run_says_so_and_other_flags_are_refused(supernet, tmp_path, capsys):
    argv = ["search", "--supernet", supernet, *SEARCH, "--out", tmp_path]
    stage(*argv)
    before = (tmp_path / "result.json").stat().st_mtime_ns
    stage(*argv)
    assert "already finished" in capsys.readouterr().out and (tmp_path / "result.json").stat().st_mtime_ns == before
    assert "seed was 0, is 5" in refused(*argv, "--seed", 5)
    (tmp_path / "result.json").write_text("")
    assert "result.json" in refused(*argv)


def test_a_super_net_that_was_made_anew_is_another_input(supernet, tmp_path):
    """It has the old one's name, and a search that went on with it would mix the scores of both."""
    copy, checkpoint = str(tmp_path / "copy.pt"), runtime.load_checkpoint(supernet, "super-net")
    argv = ["search", "--supernet", copy, *SEARCH, "--out", tmp_path / "q"]
    runtime.save(copy, checkpoint)
    stage(*argv)
    runtime.save(copy, {**checkpoint, "seed": 8})
    assert f"'{copy}' has changed" in refused(*argv)


def test_another_seed_searches_other_architectures(supernet, tmp_path):
    found = []
    for seed in (0, 1):
        stage("search", "--supernet", supernet, *SEARCH, "--seed", seed, "--out", tmp_path / str(seed))
        lines = (tmp_path / str(seed) / "scores.jsonl").read_text().splitlines()
        found.append([json.loads(line)["arch"] for line in lines])
    assert found[0] != found[1]


@pytest.mark.parametrize("script", ["train_supernet", "retrain"])
def test_a_result_is_written_last(script, images, tmp_path, monkeypatch):
    save = runtime.save

    def no_product(path, checkpoint):
        if not str(path).endswith("last.pt"):
            raise OSError("no space")
        save(path, checkpoint)

    monkeypatch.setattr(runtime, "save", no_product)
    arch = ["--arch", ARCH] if script == "retrain" else []
    with pytest.raises(OSError, match="no space"):
        stage(script, *arch, "--dataset", images, *TRAIN, "--epochs", 1, "--out", tmp_path)
    assert not (tmp_path / "result.json").exists() and (tmp_path / "last.pt").exists()


def test_where_a_run_happens_does_not_block_its_resume(supernet, images, tmp_path, monkeypatch):
    call = ["adapt", "--dataset", images, "--epochs", 2, "--out", tmp_path / "r"]
    monkeypatch.chdir(Path(supernet).parent.parent)
    with interrupted(after_epoch=1):
        stage(*call, "--supernet", "run/supernet.pt")
    monkeypatch.chdir("run")
    stage(*call, "--supernet", "supernet.pt", "--device", "cpu", "--data-root", "elsewhere")
    assert result(tmp_path / "r")["epochs"] == 2


def test_a_folder_without_the_paths_of_its_machine_resumes(supernet, images, tmp_path):
    """As results/study is committed. Its other flags still count."""
    call = ["adapt", "--dataset", images, "--supernet", supernet, "--out", tmp_path]
    with interrupted(after_epoch=1):
        stage(*call, "--epochs", 2)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["resolved"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "epochs was 2, is 3" in refused(*call, "--epochs", 3)
    stage(*call, "--epochs", 2)
    assert result(tmp_path)["epochs"] == 2
