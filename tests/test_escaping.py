"""Names from files and command lines cannot act on a terminal, a Markdown page or a browser."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from kd_lightning.cli import main
from kd_lightning.escaping import markdown, plain
from kd_lightning.experiments import results
from kd_lightning.experiments.measurements import ResultRow, result_row
from kd_lightning.experiments.report import csv_text, markdown_table
from kd_lightning.experiments.spec import Experiment, RunSpec
from kd_lightning.experiments.tables import tables
from kd_lightning.runs.progress import RunProgress
from tests.compare.comparing import make_run
from tests.experiments import HEAD, MINI, write

Capture = pytest.CaptureFixture[str]

ESCAPE = "\x1b[31m\x1b]0;title\x07\x9b2J\u202e"
"""Changes the color, the window's title and the direction of text, and clears the screen."""

MARKUP = "[red]x[/] [/b] [link=http://a.b]y[/link] :bug:"
HTML = "<script>a|b</script> `c` ![i](http://a.b) *d*"
HOSTILE = f"{ESCAPE}{MARKUP}"


def acts_on_terminal(text: str) -> bool:
    """Whether a text that has no colors of its own holds a control character."""
    return any(not character.isprintable() for character in text.replace("\n", ""))


def on_terminal(*parts: object) -> str:
    """What a console shows of texts and tables, in the characters that reach the terminal."""
    console = Console(file=io.StringIO(), width=300, force_terminal=True, no_color=True)
    for part in parts:
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_plain_text_is_shown_as_it_is() -> None:
    shown = on_terminal(plain(HOSTILE))
    assert MARKUP in shown
    assert "\\x1b[31m" in shown
    assert not acts_on_terminal(shown)
    assert on_terminal(plain("[ 1/10]   a\nb\tc")) == "[ 1/10]   a b c\n"


def test_tables_show_titles_headings_and_cells_as_they_are() -> None:
    made = tables(HOSTILE, ["run", HOSTILE], [[HOSTILE, "1"], ["a", HOSTILE]], 290)
    shown = on_terminal(*made)
    assert shown.count(MARKUP) == 4
    # Columns are measured as they are shown, and two of these do not fit.
    assert len(list(tables(None, ["run", "a", "b"], [["x", ESCAPE, ESCAPE]], 60))) == 2


def test_markdown_begins_no_html_no_cell_and_no_link() -> None:
    text = markdown(f"{HTML}\n\n# {ESCAPE}")
    assert "<" not in text
    assert "\\|" in text
    assert "\\`c\\`" in text
    assert "![i\\](http" in text
    assert "\n" not in text
    assert not acts_on_terminal(text)
    # The backslash of the text must not undo ours.
    assert markdown("a\\|b") == "a\\\\\\|b"
    for unchanged in (
        "student_alone, T=4.0 ± 1%",
        "95% interval [-0.1, +3.6] (Holm: 0.1)",
    ):
        assert markdown(unchanged) == unchanged


def rows() -> list[ResultRow]:
    return [result_row(HTML + ESCAPE, "test_errors", [3.0, 4.0], paper=None)]


def test_results_md_and_csv_hold_no_active_text() -> None:
    head = {**HEAD, "title": f"{HTML}{ESCAPE}", "claim": HTML, "note": HTML}
    experiment = Experiment("name", runs=[RunSpec("a")], **head)
    content: results.Results = {
        "experiment": "name",
        "rows": rows(),
        "comparisons": [{"sentence": HTML}],
        "commit": None,
        "hardware": {"gpus": [], "cpu": "c", "threads": 1},
        "wall_time_s": 1.0,
        "note": HTML,
    }
    text = results.markdown(experiment, content)
    assert "<" not in text
    assert "](" not in text.replace("\\](", "")
    assert not acts_on_terminal(text)
    # A heading, a ruler and one row, each with as many cells as before.
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert [line.replace("\\|", "").count("|") for line in lines] == [4, 4, 4]
    assert not acts_on_terminal(results.csv_text(content).replace("\r", ""))
    assert not acts_on_terminal(csv_text([ESCAPE], [[ESCAPE, 1.0]]))
    assert "<" not in "".join(markdown_table([HTML], [[HTML]]))


@pytest.mark.parametrize("form", ["terminal", "markdown", "csv", "json"])
def test_compare_neutralizes_names_of_runs_and_folders(
    form: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "\x1b[31m[red]<script>|`x"
    runs = [make_run(folder, 0, 10), make_run(tmp_path / "b\x1b]0;t\x07", 1, 11)]
    caches = tmp_path / "cache\x1b[2J"
    caches.mkdir()
    (caches / "run.json").write_text("{}")
    (caches / "manifest.json").write_text("{}")
    assert main(["compare", *runs, str(caches), "--format", form]) == 0
    out, err = capsys.readouterr()
    assert "script" in out
    assert not acts_on_terminal(out)
    assert not acts_on_terminal(err)
    if form == "markdown":
        assert "<script" not in out
    if form == "terminal":
        assert "[red]" in out


def test_compare_reports_a_missing_folder_without_its_escapes(capsys: Capture) -> None:
    assert main(["compare", f"nothing{ESCAPE}"]) == 2
    err = capsys.readouterr().err
    assert "nothing\\x1b" in err
    assert not acts_on_terminal(err)


def test_reproduce_prints_the_commands_of_hostile_names(
    tmp_path: Path, capsys: Capture
) -> None:
    content = {**MINI, "runs": {MARKUP.replace("@", ""): MINI["runs"]["teacher"]}}
    content |= {"compare": [], "paper": {}, "seeds": 1}
    folder = tmp_path / "store\x1b[31m[/x]"
    path = write(tmp_path, content, f"mini{MARKUP[:6]}\x1b[1m.yaml")
    assert main(["reproduce", str(path), f"--store={folder}", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert MARKUP in out
    assert "[/x]" in out
    assert not acts_on_terminal(out)


def test_progress_neutralizes_the_name_of_the_run() -> None:
    shown = RunProgress(HOSTILE)
    assert not acts_on_terminal(shown.label)
    with shown.console.capture() as captured:
        shown.console.print(shown.label, soft_wrap=True)
    assert MARKUP in captured.get()
