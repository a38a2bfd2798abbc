"""The pages of the methods: one per loss, and the table of all."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from docs.generate.arguments import arguments_table, body_of
from docs.generate.markdown import table
from experiments.methods import (
    FAMILIES,
    Method,
    Results,
    cache_of,
    cost_lines,
    formulas,
    result_lines,
    summary_of,
)
from kd_lightning.paths import shipped_root

INTRODUCTION = """\
# All methods

Every loss of the package, generated from the code. A page has the formula, the paper,
the needs, the config, the arguments, and everything that we measured with it.

| column | meaning |
| --- | --- |
| needs | what the loss reads |
| cache | which cache of `kd cache` can replace the teacher: a full one, also one of the largest logits (top-k), a full one with features, or none |

[Which method do I need](../which-method.md) chooses among them. `kd list methods` prints the list.
"""

_RELATIVE_LINK = re.compile(r"\]\((?!\.\.|https?:)")


def page_name(method: Method) -> str:
    """The path of a method's page in the site."""
    return f"methods/{method.name.lower()}.md"


def index_page(methods: Sequence[Method]) -> str:
    """The table of all methods, by family.

    Args:
        methods: all methods in the order of the page.
    """
    lines = [INTRODUCTION]
    for family in dict.fromkeys(method.cls.family for method in methods):
        lines += [f"## {FAMILIES.get(family, family)}", ""]
        rows = []
        for method in methods:
            if method.cls.family == family:
                rows.append(_index_row(method))
        lines += table(["method", "year", "needs", "cache"], rows)
        lines.append("")
    return "\n".join(lines)


def _index_row(method: Method) -> list[str]:
    """The row of a method in the table."""
    link = f"[{method.name}]({Path(page_name(method)).name})"
    year = str(method.cls.year or "")
    return [link, year, ", ".join(method.cls.needs), cache_of(method)]


def method_page(method: Method, results: Sequence[Results]) -> str:
    """The page of one method.

    Args:
        method: the loss with its configs.
        results: all committed results.
    """
    lines = [f"# {method.name}", "", summary_of(method.cls), ""]
    lines += _facts(method)
    # A summary that is the formula itself is not repeated.
    own_formulas = [
        line for line in formulas(method.cls) if line != summary_of(method.cls)
    ]
    if own_formulas:
        lines += ["## Formula", ""]
        lines += [f"- {line}" for line in own_formulas]
        lines.append("")
    lines += _configs(method)
    lines += ["## Arguments", "", *arguments_table(method.cls), ""]
    lines += _results(method, results)
    # The summary stands at the top already.
    details = body_of(method.cls)[2:]
    if details:
        lines += ["## Details", "", *details]
    return "\n".join(lines)


def _facts(method: Method) -> list[str]:
    """Paper, family, needs and cache as a list."""
    family = FAMILIES.get(method.cls.family, method.cls.family)
    return [
        f"- Paper: {paper_link(method.cls.paper)}",
        f"- Family: {family.lower()}",
        f"- Needs: {', '.join(method.cls.needs)}",
        f"- Cache that can replace the live teacher: {cache_of(method)}",
        f"- Class: `kd_lightning.losses.{method.name}`",
        "",
    ]


def paper_link(paper: str) -> str:
    """The citation of a paper, with links for arXiv numbers and DOIs."""
    paper = re.sub(
        r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", paper
    )
    return (
        re.sub(r"doi (10\.[^\s,;]+)", r"[doi \1](https://doi.org/\1)", paper) or "none"
    )


def _configs(method: Method) -> list[str]:
    """The configs of a method, verbatim, and a command that uses the first."""
    lines = ["## YAML", ""]
    for config in method.configs:
        text = (shipped_root() / config).read_text(encoding="utf-8")
        lines += [f"`{config}`:", "", "```yaml", text.rstrip(), "```", ""]
    lines += [
        "Train with it, and list its options:",
        "",
        "```console",
        f"$ kd fit ... -c {method.configs[0]}",
        f"$ kd fit --model.losses.help {method.name}",
        "```",
        "",
    ]
    return lines


def _results(method: Method, results: Sequence[Results]) -> list[str]:
    """What the committed results say about a method."""
    lines = ["## Measured results", ""]
    measured = result_lines(method, results)
    if not measured:
        return [
            *lines,
            "No experiment with committed results uses this method yet.",
            "",
        ]
    lines += [
        'Means over seeds with standard deviations. "vs." is the paired difference from another '
        "run; p is corrected by Holm's method within the experiment.",
        "",
    ]
    lines += table(
        ["experiment", "run", "metric", "result", "vs."], _linked(measured, results)
    )
    costs = cost_lines(method, results)
    if costs:
        text = _RELATIVE_LINK.sub("](../experiments/", "; ".join(costs))
        lines += ["", f"Cost of a step: {text}."]
    lines.append("")
    return lines


def _linked(
    measured: Sequence[list[str]], results: Sequence[Results]
) -> list[list[str]]:
    """Rows of results whose experiments link to their tables."""
    paths = {result.name: result.path for result in results}
    rows = []
    for name, *rest in measured:
        rows.append([f"[{name}](../experiments/{paths[name]}/results.md)", *rest])
    return rows
