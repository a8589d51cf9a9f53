"""What README.md tells the reader to run."""

import re

import pytest
from conftest import ROOT, command, stage

README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_quickstart_is_two_commands():
    block = re.search(r"## Quickstart\n\n```\n(.*?)```", README, re.DOTALL).group(1)
    assert block.splitlines() == [
        "pip install -r requirements.txt && python reproduce.py quick",
        "pip install -r requirements-dev.txt && python -m pytest",
    ]


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_a_snippet_runs(snippet):
    assert len(snippet.splitlines()) <= 10
    exec(snippet, {})


def test_there_is_a_snippet_for_each_file_to_lift():
    assert [re.search(r"from common\.(\w+)", s).group(1) for s in SNIPPETS] == ["data", "drw", "kendall"]


@pytest.mark.parametrize("name", ["data", "drw", "kendall"])
def test_a_file_to_lift_imports_nothing_of_this_repo(name):
    source = (ROOT / "common" / f"{name}.py").read_text()
    assert not re.search(r"^\s*(from \.|from common|import common)", source, re.MULTILINE)


def test_quick_runs_resumes_and_reports(images, tmp_path):
    argv = ["--source", images, "--target", images, "--imbalance", 5, "--channels", 4, "--source-epochs", 1,
            "--adapt-epochs", 1, "--target-epochs", 1, "--subnet-epochs", 1, "--generations", 1, "--population", 2,
            "--val-images", 12, "--out", tmp_path / "quick"]  # fmt: skip
    done = command("reproduce.py", "quick", *argv)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| P")]
    assert [row.split("|")[1].strip() for row in rows] == ["P0", "P1", "P2", "P3"]
    again = command("reproduce.py", "quick", *argv)
    assert again.stdout.count("already finished") == 12
    assert [line for line in again.stdout.splitlines() if line.startswith("| P")] == rows


def test_a_mistake_that_a_stage_finds_is_told_by_quick(images, tmp_path):
    done = command("reproduce.py", "quick", "--source", images, "--target", images, "--val-images", 1000, "--out", tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "smallest class has 30" in done.stderr


def test_quick_prints_its_twelve_commands(capsys):
    stage("reproduce", "quick", "--dry-run")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 12 and all(line.startswith("python ") for line in lines)
