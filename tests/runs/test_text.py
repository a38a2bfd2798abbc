"""Sentences from the files to the predictions: a pretrained folder, its student, caches, raw sentences, and what is wrong."""

from __future__ import annotations

import ast
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kd_lightning.cli import main
from kd_lightning.data import SST2DataModule, WordTokenizer
from kd_lightning.models import BiLSTMClassifier
from kd_lightning.runs.launch import RunResult, launch
from kd_lightning.runs.wandb import log_test
from kd_lightning.teachers import ModelTeacher, cache_teacher
from kd_lightning.training import ClassifierModule
from tests.sentences import save_bert, write_sst2
from tests.training.small import CONFIGS, complaint, copied, last, same

pytest.importorskip("transformers", reason="pip install 'kd_lightning[text]'")

SMALL = [
    "--model.student.embedding=8",
    "--model.student.hidden=8",
    "--model.student.head=8",
]
ENCODER = "{hidden_size: 16, intermediate_size: 16, num_attention_heads: 4, max_position_embeddings: 128, model_type: bert"


@pytest.fixture(scope="module", autouse=True)
def alone() -> Any:
    """Whatever the runs of this file set in the environment is undone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "0")
        patch.setenv("WANDB_MODE", "disabled")
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sst2(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert"), root)


def argv(root: Path, folder: Path, configs: list[str], *arguments: str) -> list[str]:
    files = ["trainer.yaml", "data/sst2.yaml", *configs, "loggers/csv.yaml"]
    named = [word for name in files for word in ("-c", str(CONFIGS / name))]
    quick = [
        "--trainer.max_epochs=1",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
    ]
    return [
        "fit",
        *named,
        *quick,
        f"--data.root={root}",
        "--data.batch_size=15",
        f"--run.dir={folder}",
        *arguments,
    ]


def fit(root: Path, folder: Path, configs: list[str], *arguments: str) -> RunResult:
    return launch(argv(root, folder, configs, *arguments))


@pytest.fixture(scope="module")
def teacher(
    tmp_path_factory: pytest.TempPathFactory, root: Path, bert: Path
) -> RunResult:
    """The pretrained folder, fine-tuned."""
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    own = [
        f"--model.network.pretrained={bert}",
        f"--data.tokenizer.name={bert}",
        "--model.scheduler.max_lr=0.01",
    ]
    return fit(
        root,
        folder,
        ["teachers/sst2_bert.yaml"],
        *own,
        "--trainer.max_epochs=15",
        "--run.test=last",
    )


def distilled(
    teacher: RunResult,
    root: Path,
    bert: Path,
    folder: Path,
    *arguments: str,
    method: str = "logitmse",
) -> RunResult:
    read = [
        "--data.teacher_tokenizer=kd_lightning.data.PretrainedTokenizer",
        f"--data.teacher_tokenizer.name={bert}",
    ]
    from_teacher = [f"--model.teacher.checkpoint={last(teacher)}"]
    configs = ["pairs/transformer_bilstm.yaml", f"methods/{method}.yaml"]
    return fit(root, folder, configs, *SMALL, *from_teacher, *read, *arguments)


def test_a_pretrained_folder_learns_and_is_loaded_again(
    teacher: RunResult, root: Path, tmp_path: Path
) -> None:
    start, trained = teacher.metrics, teacher.module.net
    assert start["test_accuracy"] > 0.7
    assert trained.head[1].out_features == 192  # type: ignore[index, union-attr]
    again = launch(
        ["test", f"--ckpt_path={last(teacher)}", f"--run.dir={tmp_path / 'test'}"]
    )
    assert again.metrics["test_errors"] == start["test_errors"]
    assert same(copied(again.module.net), copied(trained))


def test_it_teaches_a_bilstm_by_its_logits(
    teacher: RunResult, root: Path, bert: Path, tmp_path: Path
) -> None:
    quick = [
        "--trainer.max_epochs=25",
        "--model.scheduler.max_lr=0.03",
        "--model.student.dropout=0",
    ]
    run = distilled(teacher, root, bert, tmp_path / "run", *quick)
    assert run.metrics["val_teacher_agreement"] > 0.8
    weights = torch.load(last(run), weights_only=True)["state_dict"]
    assert not any(name.startswith("teacher.") for name in weights)
    assert isinstance(run.module.net, BiLSTMClassifier)


def test_hard_loss_and_logit_matching_side_by_side(
    teacher: RunResult, root: Path, bert: Path, tmp_path: Path
) -> None:
    ce = [
        "--model.losses.ce.class_path=kd_lightning.losses.CrossEntropy",
        "--model.losses.ce.weight=0.25",
    ]
    weights = [*ce, "--model.losses.logitmse.weight=0.75"]
    metrics = distilled(teacher, root, bert, tmp_path / "run", *weights).metrics
    parts = 0.25 * metrics["train_loss_ce"] + 0.75 * metrics["train_loss_logitmse"]
    assert metrics["train_loss"] == pytest.approx(parts, rel=1e-5)


AUGMENT = [
    "--data.augment=kd_lightning.data.SyntheticSentences",
    "--data.augment.copies=3",
    "--data.augmentation_seed=5",
]


def test_synthetic_sentences_are_labelled_once(
    teacher: RunResult, root: Path, bert: Path, tmp_path: Path
) -> None:
    """Trained from a cache of all views a student is what it is beside the live teacher."""
    live = distilled(
        teacher, root, bert, tmp_path / "live", *AUGMENT, "--trainer.max_epochs=4"
    )
    read = [
        "--data.teacher_tokenizer=kd_lightning.data.PretrainedTokenizer",
        f"--data.teacher_tokenizer.name={bert}",
    ]
    configs = ["pairs/transformer_bilstm.yaml", "methods/logitmse.yaml"]
    whole = argv(
        root,
        tmp_path / "none",
        configs,
        *SMALL,
        *read,
        *AUGMENT,
        f"--model.teacher.checkpoint={last(teacher)}",
    )
    words = [word for word in whole[1:] if not word.startswith("--run.dir")]
    assert main(["cache", *words, f"--output={tmp_path / 'cache'}", "--views=4"]) == 0
    cached = [
        "--model.teacher=kd_lightning.teachers.CachedTeacher",
        f"--model.teacher.path={tmp_path / 'cache'}",
    ]
    run = fit(
        root,
        tmp_path / "run",
        configs,
        *SMALL,
        *read,
        *AUGMENT,
        *cached,
        "--trainer.max_epochs=4",
    )
    assert run.metrics["train_loss"] == pytest.approx(
        live.metrics["train_loss"], rel=1e-4
    )
    for name, tensor in copied(live.module.net).items():
        torch.testing.assert_close(
            copied(run.module.net)[name], tensor, rtol=0, atol=1e-3
        )


def test_raw_sentences_in_labels_and_probabilities_out(
    teacher: RunResult,
    root: Path,
    bert: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "raw.txt").write_text(
        "A brilliant, warm film!\n\nIt isn't long but it's awful .\n"
    )
    ways = [
        ("network", teacher),
        ("student", distilled(teacher, root, bert, tmp_path / "student")),
    ]
    for name, run in ways:
        there = tmp_path / f"{name}-out"
        raw = f"--data.predict_file={tmp_path / 'raw.txt'}"
        assert (
            main(["predict", f"--ckpt_path={last(run)}", raw, f"--run.dir={there}"])
            == 0
        )
        heading, *rows = [
            line.split("\t")
            for line in (there / "predictions.tsv").read_text().splitlines()
        ]
        assert heading == ["label", "negative", "positive", "text"]
        assert [row[3] for row in rows] == [
            "A brilliant, warm film!",
            "It isn't long but it's awful .",
        ]
        for label, *probabilities, _ in rows:
            negative, positive = map(float, probabilities)
            assert math.isclose(negative + positive, 1, abs_tol=2e-6)
            assert label == ("positive" if positive > negative else "negative")
    assert capsys.readouterr().err == ""


def test_checkpoints_stand_alone(root: Path, tmp_path: Path) -> None:
    """Neither the pretrained folder, nor the training sentences, nor the teacher are needed to predict."""
    there = write_sst2(tmp_path / "data", train=40)
    folder = save_bert(tmp_path / "bert", there)
    own = [f"--model.network.pretrained={folder}", f"--data.tokenizer.name={folder}"]
    tuned = fit(there, tmp_path / "tuned", ["teachers/sst2_bert.yaml"], *own)
    student = distilled(tuned, there, folder, tmp_path / "student", "--run.test=last")
    (tmp_path / "raw.txt").write_text("A brilliant, warm film!\n")

    def predicted(run: RunResult, out: str, *data: str) -> str:
        raw = f"--data.predict_file={tmp_path / 'raw.txt'}"
        assert (
            main(
                [
                    "predict",
                    f"--ckpt_path={last(run)}",
                    raw,
                    f"--run.dir={tmp_path / out}",
                    *data,
                ]
            )
            == 0
        )
        return (tmp_path / out / "predictions.tsv").read_text()

    before = [predicted(run, f"before-{at}") for at, run in enumerate((tuned, student))]
    for path in (
        there / "SST2" / "train.tsv",
        there / "SST2" / "dev.tsv",
        *folder.iterdir(),
    ):
        path.unlink()
    folder.rmdir()
    loaded = ClassifierModule.load_from_checkpoint(last(tuned))
    assert same(copied(loaded.net), copied(tuned.module.net))
    nowhere = f"--data.root={tmp_path / 'nowhere'}"
    assert [
        predicted(run, f"after-{at}", nowhere)
        for at, run in enumerate((tuned, student))
    ] == before
    again = launch(
        ["test", f"--ckpt_path={last(student)}", f"--run.dir={tmp_path / 'test'}"]
    )  # test.tsv is there still
    assert again.metrics["test_errors"] == student.metrics["test_errors"]
    # The tokens are those of the checkpoint where other sentences lie in the training file.
    (there / "SST2" / "train.tsv").write_text("other words\t0\nstand here\t1\n")
    (there / "SST2" / "dev.tsv").write_text("other words\t0\n")
    again = launch(
        ["test", f"--ckpt_path={last(student)}", f"--run.dir={tmp_path / 'other'}"]
    )
    assert again.metrics["test_errors"] == student.metrics["test_errors"]


def test_a_tokenizer_takes_the_vocabulary_of_a_checkpoint(
    root: Path, tmp_path: Path
) -> None:
    """Fine-tuning on other sentences: the numbers must go on to stand for the same words."""
    small = [
        "--model.network.embedding=8",
        "--model.network.filters=4",
        "--data.tokenizer.size=300",
    ]
    first = fit(root, tmp_path / "first", ["teachers/sst2_textcnn.yaml"], *small)
    other = write_sst2(tmp_path / "data", train=20)
    (other / "SST2" / "train.tsv").write_text(
        "a quite different corpus\t1\nof other letters , xyz\t0\n"
    )
    configs, own = (
        ["teachers/sst2_textcnn.yaml"],
        [*small, f"--model.init_from={last(first)}"],
    )
    said = complaint(lambda: fit(other, tmp_path / "no", configs, *own))
    assert f"init_from {last(first)} reads 300 tokens" in said
    assert "argument `checkpoint`" in said
    second = fit(
        other,
        tmp_path / "second",
        configs,
        *own,
        f"--data.tokenizer.checkpoint={last(first)}",
    )
    specs = [run.module.spec for run in (first, second)]
    assert specs[0] is not None
    assert specs[1] is not None
    assert specs[0].vocabulary == specs[1].vocabulary
    (tmp_path / "first").rename(
        tmp_path / "moved"
    )  # neither that checkpoint nor init_from is needed any more
    launch(["test", f"--ckpt_path={last(second)}", f"--run.dir={tmp_path / 'test'}"])
    launch(["fit", f"--ckpt_path={last(second)}", "--trainer.max_epochs=1"])
    moved = tmp_path / "moved" / "checkpoints" / "last.ckpt"
    said = complaint(
        lambda: SST2DataModule(
            str(root), tokenizer=WordTokenizer(checkpoint=str(moved))
        ).learn()
    )
    assert (
        "reads the tokens of a SubwordTokenizer, the data has a WordTokenizer" in said
    )


def test_classes_in_another_order_are_refused(root: Path, tmp_path: Path) -> None:
    lines = "a fine film\tgood\na dull film\tbad\n" * 10
    for name in ("train", "test"):
        (tmp_path / f"{name}.tsv").write_text(lines)
    files = [
        word
        for name in ("trainer", "data/text", "loggers/csv")
        for word in ("-c", str(CONFIGS / f"{name}.yaml"))
    ]
    own = [
        "--model=kd_lightning.ClassifierModule",
        "--model.network=kd_lightning.models.TextCNN",
        "--trainer.max_epochs=1",
    ]
    quick = [
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        f"--run.dir={tmp_path / 'run'}",
    ]
    run = launch(["fit", *files, *own, *quick, f"--data.root={tmp_path}"])
    again = ["test", f"--ckpt_path={last(run)}", f"--run.dir={tmp_path / 'test'}"]
    said = complaint(lambda: launch([*again, "--data.labels=[good, bad]"]))
    assert (
        said
        == "the checkpoint's classes are the labels bad, good, in this order; data.labels has good, bad"
    )
    launch([*again, "--data.labels=[bad, good]"])


def test_features_of_every_token_are_not_cached(root: Path, tmp_path: Path) -> None:
    data = SST2DataModule(str(root), batch_size=15)
    assert data.spec.vocabulary is not None
    net = BiLSTMClassifier(4, 4, 4, vocabulary=data.spec.vocabulary.size, num_classes=2)
    teacher = ModelTeacher(network=net, layers={"words": "embedding"})
    said = complaint(
        lambda: cache_teacher(teacher, data, tmp_path / "cache", features=("words",))
    )
    assert "in one batch and" in said
    assert "use the live teacher for them" in said


def test_a_missing_file_to_predict_leaves_no_folder(
    teacher: RunResult, tmp_path: Path
) -> None:
    wanted = [
        f"--data.predict_file={tmp_path / 'none.txt'}",
        f"--run.dir={tmp_path / 'out'}",
    ]
    said = complaint(
        lambda: launch(["predict", f"--ckpt_path={last(teacher)}", *wanted])
    )
    assert "there is no file" in said
    assert not (tmp_path / "out").exists()


def test_a_resumed_run_is_the_uninterrupted_one(root: Path, tmp_path: Path) -> None:
    """Order, synthetic sentences and dropout are functions of seed and epoch, for sentences as for images."""
    configs = ["teachers/sst2_textcnn.yaml", "text/synthetic.yaml"]
    own = [
        "--model.network.embedding=8",
        "--data.tokenizer.size=300",
        "--model.scheduler=null",
    ]
    whole = fit(root, tmp_path / "whole", configs, *own, "--trainer.max_epochs=3")
    half = fit(root, tmp_path / "half", configs, *own, "--trainer.max_epochs=1")
    rest = launch(["fit", f"--ckpt_path={last(half)}", "--trainer.max_epochs=3"])
    assert same(copied(rest.module.net), copied(whole.module.net))


def test_word_vectors_are_where_training_starts(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "vectors.txt"
    path.write_text("film 1 2 3\nnever 4 5 6\nawful -1 -2 -3\n")
    words = SST2DataModule(str(root))
    words.learn()
    own = [
        f"--model.network.vectors={path}",
        "--model.network.embedding=3",
        "--model.network.hidden=4",
    ]
    reads = [
        "--data.tokenizer=kd_lightning.data.WordTokenizer",
        "--model.optimizer.lr=0",
        "--model.scheduler=null",
    ]
    run = fit(root, tmp_path / "run", ["teachers/sst2_bilstm.yaml"], *own, *reads)
    weight = copied(run.module.net)["embedding.weight"]
    assert weight[words.tokenizer.vocabulary["film"]].tolist() == [1, 2, 3]
    assert weight[words.tokenizer.vocabulary["awful"]].tolist() == [-1, -2, -3]
    path.unlink()  # a checkpoint needs the file no more
    assert (
        "test_errors"
        in launch(
            ["test", f"--ckpt_path={last(run)}", f"--run.dir={tmp_path / 'test'}"]
        ).metrics
    )


@pytest.mark.parametrize("name", ["bilstm", "textcnn", "transformer"])
def test_teachers_without_pretrained_weights(
    name: str, root: Path, tmp_path: Path
) -> None:
    small = {
        "bilstm": ["--model.network.embedding=8", "--model.network.hidden=8"],
        "textcnn": ["--model.network.embedding=8", "--model.network.filters=4"],
        "transformer": [
            f"--model.network.architecture={ENCODER}, num_hidden_layers: 4}}"
        ],
    }
    run = fit(
        root,
        tmp_path / "run",
        [f"teachers/sst2_{name}.yaml"],
        *small[name],
        "--data.tokenizer.size=300",
    )
    assert math.isfinite(run.metrics["val_nll"])


def test_half_a_transformer_starts_from_every_second_layer(
    root: Path, tmp_path: Path
) -> None:
    size = "--data.tokenizer.size=300"
    deep = f"--model.network.architecture={ENCODER}, num_hidden_layers: 4}}"
    four = fit(root, tmp_path / "four", ["teachers/sst2_transformer.yaml"], deep, size)
    halves = [
        f"--model.student.architecture={ENCODER}, num_hidden_layers: 2}}",
        f"--model.student.copy_from={last(four)}",
    ]
    configs = [
        "text/pieces.yaml",
        "pairs/transformer4_transformer2.yaml",
        "methods/distilbert.yaml",
    ]
    still = ["--model.optimizer.lr=0", "--model.scheduler=null"]
    run = fit(
        root,
        tmp_path / "two",
        configs,
        size,
        *halves,
        *still,
        f"--model.teacher.checkpoint={last(four)}",
    )
    student, teacher = copied(run.module.net), copied(four.module.net)
    key = "attention.self.query.weight"
    for ours, theirs in ((0, 1), (1, 3)):
        layer = "encoder.encoder.layer"
        assert torch.equal(
            student[f"{layer}.{ours}.{key}"], teacher[f"{layer}.{theirs}.{key}"]
        )
    assert 0 < run.metrics["train_loss_distilbert"] < 2


def test_a_teacher_that_reads_other_tokens_is_named(
    teacher: RunResult, root: Path, bert: Path, tmp_path: Path
) -> None:
    configs = ["pairs/transformer_bilstm.yaml", "methods/logitmse.yaml"]
    from_teacher = f"--model.teacher.checkpoint={last(teacher)}"
    said = complaint(lambda: fit(root, tmp_path / "run", configs, *SMALL, from_teacher))
    assert "the teacher reads" in said
    assert "Set data.teacher_tokenizer" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "train.tsv is empty"),
        (
            "fine\t1\nodd\t7\n",
            "train.tsv, line 2: unknown label '7'; valid labels: 0, 1",
        ),
        ("fine\n", "train.tsv, line 1: there is no column 1"),
        (b"caf\xe9\t1\n", "train.tsv, line 1: byte 0xe9 is not UTF-8"),
    ],
)
def test_bad_files_are_one_line(
    content: str | bytes, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_sst2(tmp_path / "data")
    (root / "SST2" / "train.tsv").write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )
    assert main(argv(root, tmp_path / "run", ["teachers/sst2_bilstm.yaml"])) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_model_that_cannot_be_had_is_one_line(
    root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kd_lightning.hub.reachable", lambda: False)
    assert (
        main(
            argv(
                root,
                tmp_path / "run",
                ["teachers/sst2_bert.yaml"],
                "--data.tokenizer.name=no-such-model-here",
            )
        )
        == 2
    )
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert (
        "no-such-model-here is not in the cache of the hub and there is no network; give the path of its folder"
        in error
    )


def test_mistakes_are_shown_as_texts_in_wandb(root: Path) -> None:
    """The most confident ones first, with what was guessed."""
    logged: dict[str, Any] = {}
    data = SST2DataModule(str(root))
    logger: Any = SimpleNamespace(experiment=SimpleNamespace(log=logged.update))
    target = data.raw("test").target
    logits = torch.nn.functional.one_hot(target, 2) * 4.0
    logits[3], logits[5] = logits[3].flip(0) / 2, logits[5].flip(0)
    log_test(
        logger,
        {"logits": logits, "target": target, "index": torch.arange(len(target))},
        data,
    )
    rows = logged["test_mistakes"].data
    assert [row[1] for row in rows] == [data.raw("test").texts[at][0] for at in (5, 3)]
    assert [row[0] for row in rows] == [
        "negative (0.98), is positive",
        "negative (0.88), is positive",
    ]
    assert "test_confusion_matrix" in logged


def test_nothing_imports_the_optional_packages_before_they_are_asked_for() -> None:
    """They are of an extra, and take seconds: `kd_lightning.hub.library` alone imports them."""
    optional = {"transformers", "tokenizers", "textblob"}
    package = CONFIGS.parent / "kd_lightning"
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else []
            )
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not optional & {name.partition(".")[0] for name in names}, path
