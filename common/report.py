"""report.md, report.json, runs.jsonl and pictures: the finished stages of a plan beside the paper's numbers."""

import json
import os
import statistics
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import NamedTuple

from . import runtime, study, tables
from .runner import record

try:
    from matplotlib.figure import Figure
except ImportError:
    Figure = None

TITLES = {
    "1": "Table 1: sub-nets on balanced and long-tailed data",
    "3a": "Table 3a: from the source to the target",
    "3b": "Table 3b: from the target to the source (the paper's row P3 is not legible in our copy)",
    "4": "Table 4: P2 with a backbone that is frozen early",
    "5": "Table 5: loss of the target's super-net (P3)",
    "6": "Table 6: classes of > 100 (many), 20-100 (medium) and < 20 (few) training images",
    "fig1": "Figure 1: rank correlation between datasets (the paper's numbers are not legible in our copy)",
    "fig2": "Figure 2: seconds to adapt a super-net to the target, the paper's on a V100; P0 takes none",
    "study": "Study: 95 % intervals over the architectures of a set, and over super-nets",
    "baselines": "ResNet-32 at 100x: Cao et al. 2019; BagofTricks-LT, Zhang et al. 2021; official code of Ren et al. 2020",
}


class Cell(NamedTuple):
    row: str
    column: str
    printed: str | None  # the paper's number
    stages: list  # one per seed
    keys: tuple  # under which a stage's result.json has our number


def write(plan, cells, out, scale, changed):
    """Writes the files into `out`; returns the Markdown. cells: of each table. changed: flags that are not the paper's."""
    records = {name: found for name in plan if (found := record(plan, out, name))}
    parts, numbers = [heading(plan, records, scale, changed)], {}
    for table, entries in cells.items():
        parts.append(f"## {TITLES[table]}\n")
        if table in ("fig1", "study"):
            text, numbers[table] = (correlations if table == "fig1" else decisions)(records, out)
            parts.append(text)
            continue
        numbers[table] = [{"row": c.row, "column": c.column, "paper": c.printed, "ours": ours(c, records)} for c in entries]
        rows = {}
        for number in numbers[table]:
            rows.setdefault(number["row"], [number["row"]]).append(summary(number["ours"], number["paper"]))
        parts += [markdown(["", *dict.fromkeys(cell.column for cell in entries)], rows.values()), *ties(plan, entries, records)]
    panels = {t: found for t in ("6", "fig2") if (found := [number for number in numbers.get(t, ()) if number["ours"]])}
    if Figure and panels:
        picture(panels, os.path.join(out, "procedures.png"))
        parts.append("![Table 6 and Figure 2](procedures.png)\n")
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
    lines.append(
        "A cell is the mean over seeds ± standard deviation (number of seeds) and [the paper's number]; accuracies in %.\n"
    )
    for name in ("commit", "torch", "device", "threads"):
        lines.append(f"- {name}: {', '.join(sorted({str(found['config'].get(name)) for found in records.values()}))}")
    return "\n".join(lines) + "\n"


def markdown(heads, rows):
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *rows)) + "\n"


def ours(cell, records):
    """Our number of each finished seed. A group without classes has none."""
    values = [reduce(getitem, cell.keys, records[name]["result"]) for name in cell.stages if name in records]
    return [value for value in values if value is not None]


def summary(values, printed):
    """41.50 ± 2.12 (2) [41.93]"""
    words = [f"{statistics.mean(values):.2f}"] if values else []
    if len(values) > 1:
        words.append(f"± {statistics.stdev(values):.2f} ({len(values)})")
    return " ".join([*words, *([f"[{printed}]"] if printed else [])])


def ties(plan, entries, records):
    """A line that says which rows are not independent, because their searches chose the same architecture."""
    rows = {}
    for cell in entries:
        for seed, name in enumerate(cell.stages):
            if name in records and cell.keys == ("accuracy", "all") and plan[name].needs:  # the need is a search
                rows.setdefault((cell.column, seed, records[name]["result"]["arch"]), []).append(cell.row)
    same = [f"{column}, seed {seed}: {' = '.join(equal)}" for (column, seed, _), equal in rows.items() if len(equal) > 1]
    return [f"These searches chose the same architecture: {'; '.join(same)}.\n"] if same else []


def correlations(records, out):
    """(Markdown, JSON) of Figure 1, by common/tables.py."""
    files = [os.path.join(out, name, "accuracies.jsonl") for name in records if name.startswith("rank_")]
    if not files:
        return "", None
    result = tables.compare(tables.read(files))
    text = f"```\n{tables.text(result).strip()}\n```\n"
    if Figure:
        tables.heat_map(result, os.path.join(out, "figure1.png"))
        text += "\n![Figure 1](figure1.png)\n"
    return text, tables.plain(result)


def decisions(records, out):
    """(Markdown, JSON) of the study. Writes its accuracies.jsonl, too."""
    names = [name for name in records if name.startswith(("alone_", "inside_"))]
    text = "".join(Path(out, name, "accuracies.jsonl").read_text() for name in names)
    runtime.write(os.path.join(out, "accuracies.jsonl"), text)
    lines = [json.loads(line) for line in text.splitlines()]
    with runtime.reading(study.ARCHITECTURES, "a file with one architecture a line"):
        archs = Path(study.ARCHITECTURES).read_text().split()
    rows, found = {}, {name: study.decide(lines, archs[lines_of]) for name, lines_of in study.SETS.items()}
    for numbers in found.values():
        for quantity, *values in numbers:
            rows.setdefault(quantity, [quantity]).append(tables.shown(*values))
    return markdown(["", *found], rows.values()), tables.plain(found)


def picture(panels, path):
    """Bars of our means: a group for each procedure, and in it a bar for each column."""
    figure = Figure(figsize=(4.5 * len(panels), 3.2), layout="constrained")
    for axes, (table, numbers) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        names, columns = (list(dict.fromkeys(number[key] for number in numbers)) for key in ("row", "column"))
        width = 1 / (len(columns) + 1)
        for i, column in enumerate(columns):
            bars = {n["row"]: statistics.mean(n["ours"]) for n in numbers if n["column"] == column}
            places = [names.index(row) + (i - (len(columns) - 1) / 2) * width for row in bars]
            axes.bar(places, bars.values(), width, label=column)
        axes.set_xticks(range(len(names)), names)
        axes.set_title("accuracy of the sub-net, %" if table == "6" else "seconds to adapt the super-net")
        axes.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=len(columns))
    figure.savefig(path, dpi=150)
