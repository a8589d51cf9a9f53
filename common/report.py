"""report.md, report.json, runs.jsonl and figures, from the finished stages of a plan: their numbers beside the printed ones."""

import json
import os
import statistics
from itertools import combinations
from typing import NamedTuple

from . import runner, runtime, tables

TITLES = {
    "1": "Table 1: sub-nets on balanced and long-tailed data",
    "3a": "Table 3a: from the source to the target",
    "3b": "Table 3b: from the target to the source",
    "4": "Table 4: P2 with a backbone that is frozen early",
    "5": "Table 5: loss of the target's super-net (P3)",
    "6": "Table 6: classes of > 100 (many), 20-100 (medium) and < 20 (few) training images",
    "fig1": "Figure 1: rank correlation between datasets",
    "fig2": "Figure 2: seconds to adapt a super-net to the target",
    "baselines": "Baselines of the field: ResNet-32, top-1 in %",
}
NOTES = {
    "3b": "The paper's row P3 is not legible in our copy.",
    "fig1": "The paper's cells are not legible in our copy; tau is high between balanced datasets and low across imbalance.",
    "fig2": "P0 trains nothing: 0 s. The paper's seconds are those of a V100.",
    "baselines": "Cao: Cao et al. 2019. BoT: Zhang et al. 2021. Code: official code of Ren et al. 2020, about 1,200 epochs.",
}


class Cell(NamedTuple):
    row: str
    column: str
    printed: str | None  # the paper's number
    stages: list  # one a seed
    place: tuple  # of our number in a stage's result.json


def write(plan, cells, out, scale, setting, papers):
    """Writes the files into `out`; returns the Markdown. setting: flags; papers: those that the paper's tables name."""
    records = {name: record for name in runner.in_order(plan) if (record := runner.record(plan, out, name))}
    parts, whole = [heading(plan, records, scale, setting, papers)], {}
    for table, entries in cells.items():
        parts.append(f"## {TITLES[table]}\n")
        if table == "fig1":
            text, whole[table] = correlations(records, out)
        else:
            text, whole[table] = accuracies(entries, records, scale)
        parts += [text, *choices(entries, records), *(costs(whole[table]) if table == "fig2" else ())]
        if table in NOTES:
            parts.append(f"{NOTES[table]}\n")
    parts += picture(whole, os.path.join(out, "procedures.png"))
    runtime.write(os.path.join(out, "report.json"), json.dumps({"scale": scale, "setting": setting, "tables": whole}, indent=1))
    runtime.write(os.path.join(out, "runs.jsonl"), "".join(json.dumps(record) + "\n" for record in records.values()))
    runtime.write(os.path.join(out, "report.md"), "\n".join(parts))
    return "\n".join(parts)


def markdown(heads, rows):
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *rows)) + "\n"


def heading(plan, records, scale, setting, papers):
    """What the numbers depend on, from the finished runs' own config.json."""
    lines = [f"# {setting['source']} and {setting['target']} at the scale '{scale}'\n"]
    differs = [f"{key} {value}" for key, value in setting.items() if value is not None and papers.get(key) != value]
    if differs:
        lines.append(f"**Not the paper's setting**: {', '.join(differs)}. The rest is the paper's.\n")
    lines.append(
        f"{len(records)} of {len(plan)} runs are finished. Accuracies are in %. A cell is the mean over seeds ± standard "
        "deviation (number of seeds) and [the printed number]. What is not known is empty.\n"
    )
    for name in ("commit", "torch", "torchvision", "numpy", "python", "device", "cores", "threads"):
        lines.append(f"- {name}: {', '.join(sorted({str(record['config'].get(name)) for record in records.values()}))}")
    return "\n".join(lines) + "\n"


def accuracies(entries, records, scale):
    """(Markdown, JSON) of a table. Columns of which neither we nor the paper have a number are left out."""
    texts, rows = {}, []
    for cell in entries:
        ours = [value for name in cell.stages if (value := lookup(records.get(name), cell.place)) is not None]
        printed = None if scale == "quick" else cell.printed  # a toy has nothing to do with the paper's numbers
        texts.setdefault(cell.column, {})[cell.row] = summary(ours, printed, len(cell.stages))
        rows.append({"row": cell.row, "column": cell.column, "paper": printed, "ours": ours})
    columns = [column for column, text in texts.items() if any(text.values())] or list(texts)
    names = dict.fromkeys(cell.row for cell in entries)
    return markdown(["", *columns], [[name, *(texts[column].get(name, "") for column in columns)] for name in names]), rows


def lookup(record, place):
    value = record and record["result"]
    for key in place:
        value = value and value[key]
    return value


def summary(ours, printed, seeds):
    """41.50 ± 2.12 (2) [41.93]"""
    words = [f"{statistics.mean(ours):.2f}"] if ours else []
    words += [f"± {statistics.stdev(ours):.2f}"] if len(ours) > 1 else []
    words += [f"({len(ours)})"] if ours and seeds > 1 else []
    return " ".join([*words, *([f"[{printed}]"] if printed else [])])


def choices(entries, records):
    """A line that says which rows are not independent, because their searches chose the same architecture."""
    same = {}
    for one, other in combinations([cell for cell in entries if cell.place == ("accuracy", "all")], 2):
        for seed, (a, b) in enumerate(zip(one.stages, other.stages, strict=True)):
            archs = [lookup(records.get(name), ("arch",)) for name in (a, b)]
            if one.column == other.column and a != b and archs[0] and archs[0] == archs[1]:
                same.setdefault(f"{one.column}, seed {seed}", []).append(f"{one.row} = {other.row}")
    told = "; ".join(f"{where}: {', '.join(pairs)}" for where, pairs in same.items())
    return [f"These searches chose the same architecture: {told}.\n"] if told else []


def costs(rows):
    """A line per ratio: the seconds of P2 and P3 over those of P1 (Figure 2)."""
    for column in dict.fromkeys(row["column"] for row in rows):
        of = {row["row"]: row for row in rows if row["column"] == column}
        words = []
        for p in ("P2", "P3"):
            if of["P1"]["ours"] and of[p]["ours"]:
                printed = f" [{int(of[p]['paper']) / int(of['P1']['paper']):g}]" if of[p]["paper"] else ""
                words.append(f"{p} {statistics.mean(of[p]['ours']) / statistics.mean(of['P1']['ours']):.2f}{printed}")
        if words:
            yield f"At {column}, times the seconds of P1: {', '.join(words)}.\n"


def correlations(records, out):
    """(Markdown, JSON) of Figure 1, by common/tables.py."""
    files = [os.path.join(out, name, "accuracies.jsonl") for name in records if name.startswith("rank_")]
    if not files:
        return "", None
    result = tables.compare(tables.read(files))
    try:
        tables.heat_map(result, os.path.join(out, "figure1.png"))
        shown = "![Figure 1](figure1.png)\n"
    except ValueError as error:  # matplotlib is not installed
        shown = f"No picture: {error}\n"
    return f"```\n{tables.text(result).strip()}\n```\n\n{shown}", tables.plain(result)


def picture(whole, path):
    """Bars of Table 6 and Figure 2, where there are any and matplotlib is installed; a line that says where they are."""
    panels = {title: [row for row in whole.get(table) or () if row["ours"]] for table, title in PANELS.items()}
    panels = {title: rows for title, rows in panels.items() if rows}
    if not panels:
        return []
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return ["No picture: matplotlib is not installed (pip install matplotlib).\n"]
    figure = Figure(figsize=(4.5 * len(panels), 3.2), layout="constrained")
    for axes, (title, rows) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        names, columns = (list(dict.fromkeys(row[key] for row in rows)) for key in ("row", "column"))
        for i, column in enumerate(columns):
            bars = {names.index(row["row"]): statistics.mean(row["ours"]) for row in rows if row["column"] == column}
            axes.bar([x + i * 0.8 / len(columns) for x in bars], bars.values(), 0.8 / len(columns), label=column)
        axes.set_xticks([x + 0.4 - 0.4 / len(columns) for x in range(len(names))], names)
        axes.set_title(title)
        if len(columns) > 1:
            axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)
    return [f"![Table 6 and Figure 2]({os.path.basename(path)})\n"]


PANELS = {"6": "accuracy of the sub-net, %", "fig2": "seconds to adapt the super-net"}
