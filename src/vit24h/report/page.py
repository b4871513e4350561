"""`index.html`: the report on one page that needs no server. Must not know: how its parts are made."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vit24h.report import tables, verdicts
from vit24h.report.source import Suite

if TYPE_CHECKING:
    from vit24h.report.notebooks import Executed

CAPTIONS = {
    "accuracy_over_time": "Top-1 over training time, all arms.",
    "locality": "Locality: DeiT-S, LocalViT-S and the locality feed-forward, with the paper's plot.",
    "curriculum": "Image-size curriculum: accuracy and image size over training time, with the paper's plot.",
    "time_spent": "Where the time went.",
    "throughput": "Images a second by image size.",
    "gaps": "The paper's claims as gaps between arms.",
}


def index_page(suite: Suite, figure_names: Sequence[str], executed: Sequence[Executed], folder: Path) -> str:
    """The page's HTML; links are relative to `folder`, where the page and the report's other files lie."""
    groups = suite.comparisons
    figures = "\n".join(
        f'<figure><img src="{name}.png" alt="{html.escape(CAPTIONS[name])}">'
        f'<figcaption>{html.escape(CAPTIONS[name])} <a href="{name}.pdf">PDF</a></figcaption></figure>'
        for name in figure_names
    )
    notebooks = "\n".join(
        f'<li><a href="{one.html.name}">{html.escape(_title(one.name))}</a> (<a href="{one.notebook.name}">ipynb</a>)'
        f"{f' <b>not executed to its end: {html.escape(one.problem)}</b>' if one.problem else ''}</li>"
        for one in executed
    )
    return _PAGE.format(
        title=html.escape(f"Report on {suite.name}" if suite.runs else "Report: no records yet"),
        records=_records(suite),
        verdicts=tables.claims(groups).to_html() if groups else "",
        results=tables.results(groups).to_html(),
        figures=figures,
        notebooks=f"<ul>{notebooks}</ul>" if executed else "<p>Not executed this time.</p>",
        runs=_run_links(suite, folder),
        summary=html.escape(_summary(suite)),
    )


def _summary(suite: Suite) -> str:
    findings = [finding for group in suite.comparisons for finding in verdicts.findings(group)]
    if not findings:
        return "There are no records to judge."
    counts = [
        f"{sum(finding.verdict == verdict for finding in findings)} {verdict}"
        for verdict in (verdicts.REPRODUCED, verdicts.NOT_REPRODUCED, verdicts.NO_VERDICT)
    ]
    return f"Of {len(findings)} claims: {', '.join(counts)}."


def _records(suite: Suite) -> str:
    """The suite's description, its Markdown list turned into an HTML one."""
    items = []
    for line in suite.description().splitlines():
        text = html.escape(line.strip().removeprefix("- ").replace("**", "").replace("`", ""))
        if text:
            items.append(f"<li{' class=warning' if '**' in line and line.strip().startswith('-') else ''}>{text}</li>")
    return f"<ul>{''.join(items)}</ul>"


def _run_links(suite: Suite, folder: Path) -> str:
    items = []
    for run in suite.runs:
        at = Path(os.path.relpath(run.path, folder)).as_posix()
        names = [name for name in _RECORD_FILES if (run.path / name).is_file()]
        links = ", ".join(f'<a href="{html.escape(at)}/{name}">{name}</a>' for name in names)
        items.append(f"<li>{html.escape(run.arm)}, seed {run.seed} ({run.state}): {links}</li>")
    return f"<ul>{''.join(items)}</ul>"


def _title(name: str) -> str:
    """'1_locality' → '1 Locality'."""
    number, _, words = name.partition("_")
    return f"{number} {words.replace('_', ' ').capitalize()}"


_RECORD_FILES = ("config.yaml", "environment.json", "log.jsonl", "result.json")
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.5rem; }} h2 {{ font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd; }}
h4 {{ font-weight: 600; font-size: .85rem; color: #555; margin: 1rem 0 .3rem; }}
table {{ border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .25rem .6rem; text-align: left; vertical-align: top; border-bottom: 1px solid #eee; }}
th {{ border-bottom: 1px solid #222; }} .number {{ text-align: right; white-space: nowrap; }}
.wide {{ overflow-x: auto; }} .note {{ font-size: .8rem; color: #666; margin: .2rem 0; }} .warning {{ color: #9A3324; }}
figure {{ margin: 1.2rem 0; }} img {{ max-width: 100%; height: auto; }} figcaption {{ font-size: .82rem; color: #555; }}
</style>
</head>
<body>
<h1>{title}</h1>
{records}
<h2>Is it reproduced?</h2>
<p>{summary}</p>
{verdicts}
<h2>Results</h2>
{results}
<p class="note">The same as <a href="table.md">Markdown</a>, <a href="table.csv">CSV</a>,
<a href="table.tex">LaTeX</a>.</p>
<h2>Figures</h2>
{figures}
<h2>Notebooks, executed on these records</h2>
{notebooks}
<h2>Records</h2>
{runs}
</body>
</html>
"""
