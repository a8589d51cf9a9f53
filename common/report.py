"""report.md, report.json, runs.jsonl and pictures: the finished stages of a plan beside the paper's numbers."""

import importlib.util
import itertools
import json
import os
import statistics
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import runtime, study, tables
from .runner import record

PICTURES = importlib.util.find_spec("matplotlib") is not None
OVERALL = ("accuracy", "all")  # a cell's keys into a stage's result.json
TITLES = {
    "1": "Table 1: sub-nets on balanced and long-tailed data",
    "3a": "Table 3a: from the source to the target",
    "3b": "Table 3b: from the target to the source (the paper's row P3 is not legible in our copy)",
    "4": "Table 4: P2 with a backbone that is frozen early",
    "5": "Table 5: loss of the target's super-net (P3)",
    "6": "Table 6: classes of > 100 (many), 20-100 (medium) and < 20 (few) training images",
    "fig1": "Figure 1: rank correlation between datasets (the paper's numbers are not legible in our copy)",
    "fig2": "Figure 2: seconds to adapt a super-net to the target, the paper's on a V100; runs side by side slow each other",
    "study": "Study: 95 % intervals over the architectures of a set, and over super-nets",
    "baselines": "ResNet-32 at 100x: Cao et al. 2019; BagofTricks-LT, Zhang et al. 2021; official code of Ren et al. 2020",
}


class Cell(NamedTuple):
    row: str
    column: str
    printed: str | None  # the published number
    stages: list  # one per seed
    keys: tuple  # under which a stage's result.json has our number


def write(plan, cells, out, scale, changed):
    """Writes the files into `out`; returns the Markdown. cells: of each table. changed: flags that are not the paper's."""
    records = {name: found for name in plan if (found := record(plan, out, name))}
    parts, numbers = [heading(plan, records, scale, changed)], {}
    for table, entries in cells.items():
        if table in COMPUTED:
            text, numbers[table] = COMPUTED[table](records, out)
        else:
            text, numbers[table] = comparison(plan, entries, records)
            if PICTURES and any(number["ours"] for number in numbers[table]):
                picture(TITLES[table], numbers[table], os.path.join(out, f"{table}.png"))
                text += f"\n![ours]({table}.png)\n"
        parts += [f"## {TITLES[table]}\n", text]
    runs, text = "".join(json.dumps(found) + "\n" for found in records.values()), "\n".join(parts)
    facts = json.dumps({"scale": scale, "changed": changed, "tables": numbers}, indent=1)
    for name, contents in (("report.md", text), ("report.json", facts), ("runs.jsonl", runs)):
        runtime.write(os.path.join(out, name), contents)
    return text


def heading(plan, records, scale, changed):
    lines = [f"# The scale '{scale}': {len(records)} of {len(plan)} runs are finished\n"]
    if changed:
        values = ", ".join(f"{name} {value}" for name, value in changed.items())
        lines.append(f"**Not the paper's setting**: {values}. The rest is the paper's.\n")
    lines.append("A cell: mean over seeds ± standard deviation (number of seeds) [published number]; accuracies in %.\n")
    for name in ("commit", "torch", "device", "threads"):
        lines.append(f"- {name}: {', '.join(sorted({str(found['config'].get(name)) for found in records.values()}))}")
    return "\n".join(lines) + "\n"


def markdown(heads, rows):
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *rows)) + "\n"


def comparison(plan, entries, records):
    """(Markdown, JSON) of a table's cells, and a line that says which rows are not independent."""
    numbers, rows, balanced, chosen, uneven = [], {}, {}, {}, False
    for cell in entries:
        finished = {seed: records[name]["result"] for seed, name in enumerate(cell.stages) if name in records}
        ours = [reduce(getitem, cell.keys, result) for result in finished.values()]
        ours = [value for value in ours if value is not None]  # a group without classes has none
        numbers.append({"row": cell.row, "column": cell.column, "published": cell.printed, "ours": ours})
        rows.setdefault(cell.row, [cell.row]).append(summary(ours, cell.printed))
        if cell.keys == OVERALL:
            means = [result["accuracy"]["balanced"] for result in finished.values()]
            balanced.setdefault(cell.row, [cell.row]).append(summary(means, None))
            numbers[-1]["balanced"] = means
            uneven = uneven or not np.allclose(means, ours)
        if cell.keys == OVERALL and plan[cell.stages[0]].needs:  # the need is a search
            for seed, result in finished.items():
                chosen.setdefault((cell.column, seed, result["arch"]), []).append(cell.row)
    text = markdown(["", *dict.fromkeys(cell.column for cell in entries)], rows.values())
    if uneven:
        heads = ["", *dict.fromkeys(cell.column for cell in entries if cell.keys == OVERALL)]
        text += "\nThe test classes are uneven. Means over classes:\n\n" + markdown(heads, balanced.values())
    same = [f"{column}, seed {seed}: {' = '.join(equal)}" for (column, seed, _), equal in chosen.items() if len(equal) > 1]
    return text + (f"\nThese searches chose the same architecture: {'; '.join(same)}.\n" if same else ""), numbers


def summary(values, printed):
    """41.50 ± 2.12 (2) [41.93]"""
    words = [f"{statistics.mean(values):.2f}"] if values else []
    words += [f"± {statistics.stdev(values):.2f} ({len(values)})"] if len(values) > 1 else []
    return " ".join([*words, *([f"[{printed}]"] if printed else [])])


def correlations(records, out):
    """(Markdown, JSON) of Figure 1, by common/tables.py."""
    files = [os.path.join(out, name, "accuracies.jsonl") for name in records if name.startswith("rank_")]
    if not files:
        return "", None
    result = tables.compare(tables.read(files))
    text = f"```\n{tables.text(result).strip()}\n```\n"
    if PICTURES:
        tables.heat_map(result, os.path.join(out, "fig1.png"))
        text += "\n![Figure 1](fig1.png)\n"
    return text, tables.plain(result)


def decisions(records, out):
    """(Markdown, JSON) of the study. Writes its accuracies.jsonl, too."""
    names = [name for name in records if name.startswith(("alone_", "inside_"))]
    text = "".join(Path(out, name, "accuracies.jsonl").read_text() for name in names)
    runtime.write(os.path.join(out, "accuracies.jsonl"), text)
    lines = [json.loads(line) for line in text.splitlines()]
    archs = list(dict.fromkeys(line["arch"] for line in lines))  # in the order of the file, study.ARCHITECTURES
    found = {name: study.decide(lines, archs[of_set]) for name, of_set in study.SETS.items()}
    rows = {}
    for quantity, *values in itertools.chain(*found.values()):
        rows.setdefault(quantity, [quantity]).append(tables.shown(*values))
    seeds = {}
    for line in lines:
        seeds.setdefault(line["method"], set()).add(line["seed"])
    counts = "; ".join(f"{method}: {len(of_method)}" for method, of_method in seeds.items())
    pairs = "Claim 1 pairs all different seeds; claim 2's differences are over the seeds that both have."
    text = f"Seeds of {counts}. {pairs}\n\n" + markdown(["", *found], rows.values())
    if PICTURES and rows:
        study_picture(found, os.path.join(out, "study.png"))
        text += "\n![both claims](study.png)\n"
    return text, tables.plain(found)


def study_picture(found, path):
    """Taus with their intervals: a panel for each claim, a colour for each set of architectures."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    for axes, (title, labels) in zip(figure.subplots(1, 2), study.PANELS.items(), strict=True):
        for nth, (name, rows) in enumerate(found.items()):
            values = {quantity: value for quantity, *value in rows}
            points = [(i, *values[q]) for i, q in enumerate(labels) if q in values]
            y, tau, low, high = np.array(points).T
            axes.errorbar(tau, y + 0.15 * nth, xerr=(tau - low, high - tau), fmt="o", capsize=3, label=f"set {name}")
        axes.set_yticks(range(len(labels)), labels.values())
        axes.set_ylim(len(labels) - 0.5, -0.5)  # the first on top
        axes.axvline(0, color="grey", linewidth=0.8)
        axes.set_title(title, fontsize="medium")
    axes.legend()
    title = "Which rankings agree with that at 100x imbalance? Kendall's tau, 95 % intervals"
    figure.suptitle(f"{title} (A: equal cost, B: whole space)")
    figure.savefig(path, dpi=150)


COMPUTED = {"fig1": correlations, "study": decisions}  # tables that are no comparison of cells


def picture(title, numbers, path):
    """Our means and standard deviations over seeds: a colour for each column of a table."""
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    axes = figure.subplots()
    for column in dict.fromkeys(number["column"] for number in numbers):
        ours = {number["row"]: number["ours"] for number in numbers if number["column"] == column and number["ours"]}
        means, deviations = map(statistics.mean, ours.values()), [len(v) > 1 and statistics.stdev(v) for v in ours.values()]
        axes.errorbar(list(ours), list(means), deviations, fmt="o", capsize=3, label=column)
    axes.set_ylim(bottom=0)
    axes.set_title(title, fontsize="small")
    axes.legend()
    figure.savefig(path, dpi=150)
