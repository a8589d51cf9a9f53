"""What README.md tells the reader to run, copy and open."""

import importlib
import importlib.util
import json
import re
import shlex
import sys

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text()
(SNIPPET,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = re.findall(r"^python (\w+)\.py (.*?)(?:  +#.*)?$", README, re.MULTILINE)
LIFTED = re.search(r"from common import (.*)", SNIPPET)[1].split(", ")


def test_quickstart_is_the_first_block_and_two_commands():
    block = re.search(r"^#+ .*Quickstart\n.*?```\n(.*?)```", README, re.DOTALL | re.MULTILINE)[1]
    assert block.splitlines() == [
        "pip install -r requirements.txt && python reproduce.py quick",
        "pip install -r requirements-dev.txt && python -m pytest",
    ]


@pytest.mark.parametrize(("script", "flags"), COMMANDS, ids=[" ".join(c)[:40] for c in COMMANDS])
def test_a_command_is_understood(script, flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    searched = tmp_path / "runs" / "search_p1" / "result.json"  # the one input that is read with the flags
    searched.parent.mkdir(parents=True)
    arch = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_1x1~1|none~2|"
    data = {"dataset": "cifar100", "val_per_class": 0, "data_seed": 0}
    searched.write_text(json.dumps({"best": {"arch": arch}, "data": data}))
    importlib.import_module(script).parse_args(shlex.split(flags))


@pytest.mark.parametrize("script", sorted({script for script, _ in COMMANDS} | {"benchmark"}))
def test_help_can_be_printed(script, capsys):
    with pytest.raises(SystemExit) as end:
        importlib.import_module(script).parse_args(["--help"])
    assert end.value.code == 0 and "--device" in capsys.readouterr().out


def test_the_snippet_runs():
    exec(SNIPPET, {})


def test_the_snippet_uses_every_file_that_is_said_to_stand_alone():
    assert set(LIFTED) == set(re.findall(r"`(\w+)\.py`", README.split("## Files to copy")[1].split("```")[0]))
    assert all(f"{name}." in SNIPPET for name in LIFTED)


@pytest.mark.parametrize("name", LIFTED)
def test_a_lifted_file_imports_nothing_of_this_repo(name, monkeypatch):
    for module in ["common", *(module for module in sys.modules if module.startswith("common."))]:
        monkeypatch.setitem(sys.modules, module, None)  # importing it now fails
    spec = importlib.util.spec_from_file_location(f"lifted_{name}", ROOT / "common" / f"{name}.py")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


@pytest.mark.parametrize("page", ["README.md", *(f"results/{folder}README.md" for folder in ("", "study/", "supernet/"))])
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    links = re.findall(r'\]\(([^)]+)\)|src="([^"]+)"', text)
    for path, _, heading in (("".join(link)).partition("#") for link in links if "://" not in "".join(link)):
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), path
        if heading:
            headings = re.findall(r"^#+ (.*)$", (target / "README.md" if target.is_dir() else target).read_text(), re.MULTILINE)
            assert heading in [re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in headings], heading
