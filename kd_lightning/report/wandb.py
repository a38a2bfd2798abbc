"""Sends the figures of a report to the runs' own pages in Weights & Biases."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from kd_lightning.errors import UserError
from kd_lightning.report.blocks import Figure, Page
from kd_lightning.report.reading import ReportedRun
from kd_lightning.runs.folder import RunFolder
from kd_lightning.runs.wandb import announce, choose_mode, continue_run, is_installed
from kd_lightning.values import mapping_at

if TYPE_CHECKING:
    from markupsafe import Markup

PREFIX = "report/"
"""Of the names under which W&B shows the page and its figures."""


def mode_of_report() -> str:
    """Whether figures are sent now ("online") or stored for `wandb sync` ("offline").

    Raises:
        UserError: if W&B is not installed or switched off.
    """
    if not is_installed():
        raise UserError("--wandb: W&B is not installed; pip install wandb")
    mode = choose_mode("auto")
    if mode == "disabled":
        raise UserError("--wandb: WANDB_MODE=disabled switches W&B off; unset it")
    return mode


def send_report(page: Page, html: str, runs: Sequence[ReportedRun], mode: str) -> None:
    """Add the page, and the figures about a run, to each run in W&B.

    Args:
        page: the report.
        html: the page as a file would hold it.
        runs: the reported runs.
        mode: see `mode_of_report`.

    Raises:
        UserError: if W&B cannot be reached or refuses a run.
    """
    import wandb

    labels = {reported.label for reported in runs}
    for reported in runs:
        logged = {f"{PREFIX}page": wandb.Html(html, inject=False)}
        others = labels - {reported.label}
        for name, svg in _figures_without(page, others):
            logged[f"{PREFIX}{name}"] = wandb.Html(str(svg), inject=False)
        folder = reported.folder
        announce(mode, folder.path, asked=True)
        run = continue_run(identity_of(folder), mode, folder.path)
        run.log(logged)
        run.finish()


def identity_of(folder: RunFolder) -> dict[str, str | None]:
    """The run's id, project and entity in W&B.

    Args:
        folder: of the run.

    Raises:
        UserError: if its run.json does not name them.
    """
    identity = mapping_at(folder.record, "wandb")
    for name in ("id", "project"):
        if not isinstance(identity.get(name), str):
            raise UserError(
                f"--wandb: run.json of {folder.path} does not name the run in W&B"
            )
    entity = identity.get("entity")
    return {
        "id": str(identity["id"]),
        "project": str(identity["project"]),
        "entity": None if entity is None else str(entity),
    }


def _figures_without(page: Page, others: set[str]) -> Iterator[tuple[str, Markup]]:
    """The figures that are not about other runs alone, with a name for each."""
    for section in page.sections:
        number = 0
        for panel in section.panels:
            # The title of a panel about one run is its label.
            if panel.title in others:
                continue
            for block in panel.blocks:
                if isinstance(block, Figure):
                    number += 1
                    name = section.title if number == 1 else f"{section.title} {number}"
                    yield name, block.svg
