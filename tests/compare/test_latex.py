"""`kd compare --format latex`: bold best values, letters of ties, escaped names."""

from __future__ import annotations

from pathlib import Path

import pytest

from kd_lightning.cli import main
from kd_lightning.compare.direction import sign_of
from kd_lightning.compare.latex import latex_table, tie_letters
from kd_lightning.escaping import latex
from kd_lightning.experiments.measurements import ResultRow, result_row
from tests.compare.comparing import seeds


def rows(metric: str, **values: list[float]) -> dict[str, ResultRow]:
    of_metric = {}
    for run, numbers in values.items():
        of_metric[run] = result_row(run, metric, numbers, paper=None)
    return of_metric


def line_of(text: str, run: str) -> str:
    [line] = [line for line in text.splitlines() if line.startswith(f"{run} & ")]
    return line


def test_the_best_mean_is_bold_and_ties_have_a_letter() -> None:
    errors = rows("test_errors", a=[10, 14], b=[13, 19], c=[20, 21], d=[30, 40])
    accuracy = rows("test_accuracy", a=[0.8, 0.9], b=[0.91, 0.93], c=[0.5, 0.6])
    text = latex_table([*errors.values(), *accuracy.values()], ["10% & more."])

    assert line_of(text, "a") == (
        r"a & 2 & {\boldmath\textbf{12.0 $\pm$ 2.8}}\textsuperscript{a} "
        r"& 85.00 $\pm$ 7.07\% \\"
    )
    assert line_of(text, "b") == (
        r"b & 2 & 16.0 $\pm$ 4.2\textsuperscript{a} "
        r"& {\boldmath\textbf{92.00 $\pm$ 1.41\%}} \\"
    )
    # c and d are alone, and d has no accuracy.
    assert line_of(text, "c") == r"c & 2 & 20.5 $\pm$ 0.7 & 55.00 $\pm$ 7.07\% \\"
    assert line_of(text, "d") == r"d & 2 & 35.0 $\pm$ 7.1 &  \\"
    assert r"\begin{tabular}{lrrr}" in text
    assert "same letter are tied and not ranked" in text
    assert r"{\footnotesize 10\% \& more.\par}" in text


def test_chains_of_overlaps_share_a_letter() -> None:
    chain = rows("test_errors", a=[1, 3], b=[3, 5], c=[5, 7], d=[8, 9], e=[9, 9])
    letters = tie_letters("test_errors", chain)
    assert letters == {"a": "a", "b": "a", "c": "a", "d": "b", "e": "b"}


def test_what_has_no_best_value() -> None:
    rates = rows("learning_rate", a=[1.0, 1.0], b=[2.0, 2.0])
    text = latex_table(list(rates.values()), [])
    assert "boldmath" not in text
    assert "superscript" not in text
    assert "tied" not in text
    # A diverged run is neither the best nor tied.
    errors = rows("test_errors", a=[1.0, float("nan")], b=[2.0, 3.0], c=[4.0, 5.0])
    diverged = latex_table(list(errors.values()), [])
    assert "boldmath" in line_of(diverged, "b")
    assert "not finite" in line_of(diverged, "a")


def test_one_seed_says_little() -> None:
    errors = rows("test_errors", a=[1.0], b=[2.0])
    text = latex_table(list(errors.values()), [])
    assert "say little about ranks" in text
    assert r"{\boldmath\textbf{1.0}}" in text


@pytest.mark.parametrize(
    ("metric", "sign"),
    [
        ("test_accuracy", -1),
        ("test_miou", -1),
        ("test_teacher_agreement", -1),
        ("test_errors", 1),
        ("test_calibration_error", 1),
        ("val_nll", 1),
        ("parameters", 1),
        ("latency_ms_batch_1", 1),
        ("learning_rate", None),
    ],
)
def test_directions(metric: str, sign: int | None) -> None:
    assert sign_of(metric) == sign


def test_escaping() -> None:
    assert latex(r"a_b & 50% of $x^2 \cmd{#1}~<|>") == (
        r"a\_b \& 50\% of \$x\textasciicircum{}2 \textbackslash{}cmd\{\#1\}"
        r"\textasciitilde{}\textless{}\textbar{}\textgreater{}"
    )
    assert latex("one\x1b[31m\ntwo ± 3") == r"one\textbackslash{}x1b[31m two $\pm$ 3"


def test_the_command_escapes_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    named = {"run.name": r"a_b\input{x}"}
    runs = seeds(tmp_path, "named", [10, 12], named)
    assert main(["compare", *runs, "--output", "table.tex"]) == 0
    text = Path("table.tex").read_text()
    assert r"a\_b\textbackslash{}input\{x\} & 2 & " in text
    assert text.startswith("% needs")
    assert capsys.readouterr().out == ""
