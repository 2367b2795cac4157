"""What a run leaves behind in build/bench: an HTML file that needs nothing else, the text, plots and figures."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import text
from bench.harness import OWN
from bench.peers import LACKS
from bench.plots import PARTS, plots

if TYPE_CHECKING:
    from bench.harness import Measured, Result
    from bench.targets import Judgement

DIRECTORY = Path("build/bench")

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222; }
h1 { margin-bottom: 0; } h2 { margin-top: 2em; } h3 { margin: 2em 0 .3em; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2em .8em .2em 0; text-align: right; vertical-align: top; border-bottom: 1px solid #e5e5e5; }
th { font-weight: 600; white-space: nowrap; } .words { text-align: left; }
.own td { color: #0057d9; font-weight: 600; } .missing td { color: #888; }
.verdict { font-weight: 600; } .met .verdict { color: #187a2f; } .missed .verdict { color: #c02020; }
.note { color: #666; font-weight: 400; } img { max-width: 100%; }
dt { font-weight: 600; } dd { margin: 0 0 .5em 1.5em; }
"""

HOW_TO_READ = """Every row is a server and a client, two processes, on the cores that the table names. The rows of a
table take turns: each is measured once a round, after a round that warms up. The ratio is that of a row's median to the
first row's; only ratios travel from one machine to another. Median, min and max are those of the medians of the rounds;
p99 is of all samples. samehost's rows are complete: the caller's identity, types checked on both sides, deadlines,
limits and statistics are on in each of them. What the others do not do is said below."""


@dataclass(frozen=True)
class Run:
    """Everything that is known of a run."""

    command: str
    seconds: float
    facts: dict[str, str]
    results: list[Result]
    judgements: list[Judgement]


def write(run: Run) -> list[Path]:
    """Write all of it; the files, the one for people first."""
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    try:
        drawn = plots(run.results)
    except ImportError as error:
        drawn = {}
        reason = f"<p>The plots are missing: {escape(str(error))}.</p>"
    else:
        reason = ""
    files = {"report.html": _html(run, drawn, reason), "report.txt": _text(run), "results.json": _json(run)}
    files |= {f"{name}.svg": svg for name, (_, svg) in drawn.items()}
    for name, content in files.items():
        (DIRECTORY / name).write_text(content)
    return [DIRECTORY / name for name in files]


def _text(run: Run) -> str:
    facts = [f"{name}: {value}" for name, value in run.facts.items()]
    tables = [text.table(result) for result in run.results]
    return "\n".join([run.command, *facts, text.judgements(run.judgements), *tables, ""])


def _json(run: Run) -> str:
    """The raw results: medians of the rounds, quantiles of all samples; in seconds, or in what the unit says."""
    tables: list[dict[str, Any]] = []
    for result in run.results:
        table = asdict(result.table) | {"rows": [_raw(measured) for measured in result.rows]}
        tables.append(table)
    targets = [
        asdict(each.target) | {"label": each.label, "value": each.value, "verdict": each.verdict}
        for each in run.judgements
    ]
    whole = {"command": run.command, "seconds": run.seconds, "facts": run.facts, "targets": targets, "tables": tables}
    return json.dumps(whole, indent=1)


def _raw(measured: Measured) -> dict[str, Any]:
    row = {"key": measured.row.key, "name": measured.row.name, "peer": measured.row.peer, "note": measured.note}
    if measured.missing is not None:
        return row | {"missing": measured.missing}
    samples = sorted(measured.samples)
    if len(samples) < text.TAIL_SAMPLES:
        return row | {"rounds": measured.rounds, "samples": samples}
    return row | {"rounds": measured.rounds, "quantiles": [[part, text.quantile(samples, part)] for part in PARTS]}


def _html(run: Run, drawn: dict[str, tuple[str, str]], reason: str) -> str:
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in run.facts.items())
    lacks = "".join(f"<dt>{escape(peer)}</dt><dd>{escape(sentence)}</dd>" for peer, sentence in LACKS.items())
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>samehost beside its peers</title>',
            f"<style>{STYLE}</style></head><body><h1>samehost beside its peers</h1>",
            f"<p><code>{escape(run.command)}</code>, {run.seconds / 60:.0f} minutes</p><p>{HOW_TO_READ}</p>",
            f"<h2>Targets</h2>{_targets(run.judgements)}",
            f"<h2>Plots</h2>{reason}",
            *(f"<h3>{escape(title)}</h3>{_image(title, svg)}" for title, svg in drawn.values()),
            "<h2>Tables</h2>",
            *(_table(result) for result in run.results),
            f"<h2>What the peers do not do</h2><dl>{lacks}</dl>",
            f"<h2>The machine</h2><dl>{facts}</dl></body></html>",
        ]
    )


def _image(title: str, svg: str) -> str:
    data = base64.b64encode(svg.encode()).decode()
    return f'<img alt="{escape(title)}" src="data:image/svg+xml;base64,{data}">'


def _targets(judgements: list[Judgement]) -> str:
    rows = [
        f'<tr class="{each.verdict.replace(" ", "-")}"><td class="words">{escape(each.name)}</td>'
        f"<td>{escape(each.shown)}</td><td>{escape(each.target.text)}</td>"
        f'<td class="words verdict">{each.verdict}</td></tr>'
        for each in judgements
    ]
    head = '<tr><th class="words">what</th><th>measured</th><th>target</th><th></th></tr>'
    return f"<table>{head}{''.join(rows)}</table>"


def _table(result: Result) -> str:
    columns = text.headings(result)
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    rows = []
    for measured in result.rows:
        note = f' <span class="note">{escape(measured.note)}</span>' if measured.note else ""
        lacks = escape(LACKS.get(measured.row.peer, ""))
        name = f'<td class="words" title="{lacks}">{escape(measured.row.name)}{note}</td>'
        if measured.missing is not None:
            why = f'<td colspan="{len(columns)}">missing: {escape(measured.missing)}</td>'
            rows.append(f'<tr class="missing">{why}{name}</tr>')
            continue
        figures = "".join(f"<td>{value}</td>" for value in text.cells(measured, result))
        rows.append(f'<tr class="{"own" if measured.row.peer == OWN else "peer"}">{figures}{name}</tr>')
    return f"<h3>{escape(text.title(result))}</h3><table><tr>{head}<th></th></tr>{''.join(rows)}</table>"
