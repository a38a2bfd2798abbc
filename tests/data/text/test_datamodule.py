"""Text datamodules: batches, their order, and the description of the data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kd_lightning.data import (
    BucketLoader,
    SST2DataModule,
    SubwordTokenizer,
    SyntheticSentences,
    TextDataModule,
    WordTokenizer,
)
from kd_lightning.data.blank import blank_inputs
from kd_lightning.data.text.files import Texts
from kd_lightning.errors import UserError
from kd_lightning.spec import Spec
from kd_lightning.types import CLEAN, Batch
from tests.sentences import lines, write_sst2


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sst2(tmp_path_factory.mktemp("data"))


def module(root: Path, **arguments: Any) -> SST2DataModule:
    return SST2DataModule(str(root), **{"batch_size": 8, "pool": 2, **arguments})


def mapping(inputs: Any) -> dict[str, torch.Tensor]:
    assert isinstance(inputs, dict)
    return inputs


def served(loader: BucketLoader, epoch: int) -> list[Batch]:
    loader.set_epoch(epoch)
    return list(loader)


def test_batches_hold_the_sentences_of_their_rows(root: Path) -> None:
    data = module(root, teacher_tokenizer=SubwordTokenizer(300))
    batches = served(data.loader("train"), 0)
    assert [len(batch) for batch in batches] == [8] * 7 + [4]
    assert [
        len(batch) for batch in served(module(root, batch_size=100).loader("train"), 0)
    ] == [60]
    assert sorted(index for batch in batches for index in batch.index.tolist()) == list(
        range(60)
    )
    assert data.teacher_tokenizer is not None
    for batch in batches:
        for row, index in enumerate(batch.index.tolist()):
            text, _, label = lines(60)[index].partition("\t")
            assert int(batch.target[row]) == int(label)
            for inputs, tokenizer in (
                (batch.inputs, data.tokenizer),
                (batch.teacher_inputs, data.teacher_tokenizer),
            ):
                found = mapping(inputs)
                count = int(found["attention_mask"][row].sum())
                assert (
                    found["input_ids"][row, :count].tolist()
                    == tokenizer.encode([(text,)]).ids.tolist()
                )
                assert found["attention_mask"][row].tolist() == [1] * count + [0] * (
                    found["input_ids"].shape[1] - count
                )
        assert (batch.view, batch.split) == (CLEAN, "train")


def test_a_batch_has_sentences_of_similar_length(root: Path) -> None:
    def padding(pool: int) -> int:
        batches = served(module(root, pool=pool).loader("train"), 0)
        return sum(
            int((mapping(batch.inputs)["attention_mask"] == 0).sum())
            for batch in batches
        )

    assert padding(7) < padding(1) / 2
    (whole,) = served(module(root, eval_batch_size=100).loader("test"), 0)
    lengths = mapping(whole.inputs)["attention_mask"].sum(1)
    assert torch.equal(lengths, lengths.sort().values)


def test_the_order_is_a_function_of_seed_and_epoch(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def orders(seed: int, epochs: list[int]) -> list[list[int]]:
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        loader = module(root).loader("train")
        return [
            [index for batch in served(loader, epoch) for index in batch.index.tolist()]
            for epoch in epochs
        ]

    first = orders(0, [0, 1, 2])
    assert orders(0, [2]) == first[2:]
    assert len({tuple(order) for order in first + orders(1, [0, 1])}) == 5


def test_a_resumed_epoch_skips_its_first_batches(root: Path) -> None:
    loader = module(root).loader("train")
    whole = [batch.index.tolist() for batch in served(loader, 1)]
    loader.skip = 2
    assert [batch.index.tolist() for batch in served(loader, 1)] == whole[2:]
    assert [batch.index.tolist() for batch in served(loader, 1)] == whole


def test_overfitting_repeats_the_first_epoch(root: Path) -> None:
    data = module(root)
    first, second = (served(data.loader("train"), epoch) for epoch in (0, 1))
    assert [b.index.tolist() for b in first] != [b.index.tolist() for b in second]
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        overfit_batches=1,
        global_rank=0,
        world_size=1,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )
    repeated = served(data.loader("train"), 1)
    assert [b.index.tolist() for b in first] == [b.index.tolist() for b in repeated]


@pytest.mark.parametrize("batch", [8, 6])  # a last step of four samples, and a full one
def test_two_processes_serve_the_batches_of_one_process_of_twice_the_size(
    root: Path, batch: int
) -> None:
    source = module(root).source("train")
    one = BucketLoader(source, 2 * batch, pool=2, shuffle=True, seed=3)
    two = [
        BucketLoader(
            source, batch, pool=2, shuffle=True, seed=3, rank=rank, world_size=2
        )
        for rank in (0, 1)
    ]
    for epoch in range(2):
        together = zip(
            served(one, epoch),
            served(two[0], epoch),
            served(two[1], epoch),
            strict=True,
        )
        for whole, a, b in together:
            assert sorted(whole.index.tolist()) == sorted(
                a.index.tolist() + b.index.tolist()
            )
    three = replace(source, rows=torch.arange(3))
    few = [BucketLoader(three, 1, rank=rank, world_size=2) for rank in (0, 1)]
    assert [[batch.placeholder for batch in loader] for loader in few] == [
        [False, False],
        [False, True],
    ]


def test_synthetic_sentences_are_unlabelled_and_share_their_row(root: Path) -> None:
    data = module(
        root,
        augment=SyntheticSentences(copies=4),
        teacher_tokenizer=SubwordTokenizer(300),
    )
    assert data.views == 5
    loader = data.loader("train")
    labelled, seen = torch.zeros(60), 0
    for epoch in range(6):
        for batch in served(loader, epoch):
            assert batch.view == epoch % 5
            known = batch.target >= 0
            seen += len(batch) * (epoch < 5)
            assert torch.equal(
                batch.target[known], data.raw("train").target[batch.index[known]]
            )
            if epoch < 5:
                labelled[batch.index[known]] += 1
    assert labelled.tolist() == [1] * 60  # five views show each real sentence once
    assert seen == 300
    assert all(batch.view == CLEAN for batch in served(data.loader("validation"), 1))
    # Student and teacher read the same synthetic sentence, in any batch.
    alone = data.source("train").batch(torch.tensor([9]), 2)
    sentence = data.sentences("train").augment
    assert sentence is not None
    text = sentence.sentences(2, 0, data.raw("train").texts)[9]
    assert mapping(alone.inputs)["input_ids"].tolist() == [
        data.tokenizer.encode([text]).ids.tolist()
    ]
    assert data.teacher_tokenizer is not None
    assert mapping(alone.teacher_inputs)["input_ids"].tolist() == [
        data.teacher_tokenizer.encode([text]).ids.tolist()
    ]


def test_the_vocabulary_comes_from_the_training_sentences(tmp_path: Path) -> None:
    write_sst2(tmp_path)
    (tmp_path / "SST2" / "dev.tsv").write_text("a word unheard of\t1\n")
    data = module(tmp_path)
    assert data.spec.vocabulary is not None
    assert data.spec.vocabulary.size == len(data.tokenizer.vocabulary)
    assert "unheard" not in data.tokenizer.vocabulary
    (batch,) = served(data.loader("validation"), 0)
    assert mapping(batch.inputs)["input_ids"].tolist() == [[1, 1, 1, 1]]


def test_spec_and_blank_inputs(root: Path) -> None:
    spec = module(root, teacher_tokenizer=SubwordTokenizer(300, max_length=20)).spec
    assert (spec.data, spec.num_classes, spec.source_samples) == ("sst2", 2, 60)
    assert spec.classes == ("negative", "positive")
    assert spec.samples == {"train": 60, "validation": 12, "test": 20}
    student = mapping(blank_inputs(spec, 3))
    teacher = mapping(blank_inputs(spec.for_teacher(), 3))
    assert {name: tensor.shape for name, tensor in student.items()} == dict.fromkeys(
        ("input_ids", "attention_mask"), (3, 32)
    )
    assert teacher["token_type_ids"].shape == (3, 20)
    assert teacher["input_ids"].dtype == torch.int64
    plain = blank_inputs(Spec(input_shape=(1, 2)), 2)
    assert isinstance(plain, torch.Tensor)
    assert torch.equal(plain, torch.zeros(2, 1, 2))


def test_longer_sentences_are_truncated_and_counted(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = module(root, tokenizer=WordTokenizer(max_length=10))
    spec = data.spec
    longer = [len(line.partition("\t")[0].split()) > 10 for line in lines(60)]
    assert spec.cut is not None
    assert spec.cut["train"] == sum(longer)
    assert sum(longer) > 0
    list(data.loader("train"))
    assert (
        capsys.readouterr().out.count(
            f"data: {sum(longer)} of 60 train samples are longer than 10 tokens"
        )
        == 1
    )


def test_subsets_are_nested_and_have_the_same_row_numbers(root: Path) -> None:
    rows = [
        set(module(root, fraction=f).source("train").rows.tolist())
        for f in (0.2, 0.5, 1.0)
    ]
    assert [len(r) for r in rows] == [12, 30, 60]
    assert rows[0] < rows[1] < rows[2]
    source = module(root, label_fraction=0.25).source("train")
    assert int((source.batch(torch.arange(60), CLEAN).target >= 0).sum()) in (15, 16)


def test_without_a_validation_file_training_samples_are_held_out(root: Path) -> None:
    files: dict[str, Any] = {
        "train_file": "SST2/train.tsv",
        "test_file": "SST2/test.tsv",
    }
    data = TextDataModule(str(root), **files, validation=0.2)
    train, held = (
        set(data.source(stage).rows.tolist()) for stage in ("train", "validation")
    )
    assert (len(train), len(held)) == (48, 12)
    assert not train & held
    assert (data.source("validation").split, data.classes) == ("train", ["0", "1"])
    none = TextDataModule(str(root), **files, validation=0.0)
    assert none.val_dataloader() == []
    assert module(root, validation=0.0).spec.samples["validation"] == 0


def test_pairs_with_named_columns_and_classes_from_the_file(tmp_path: Path) -> None:
    for name in ("train", "test"):
        rows = [f"a film {at},so it is,{'yes' if at % 2 else 'no'}" for at in range(8)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["one,two,gold", *rows]))
    columns: dict[str, Any] = {"text": "one", "second": "two", "label": "gold"}
    files: dict[str, Any] = {"train_file": "train.csv", "test_file": "test.csv"}
    data = TextDataModule(
        str(tmp_path),
        **files,
        **columns,
        tokenizer=SubwordTokenizer(300),
        names=["No", "Yes"],
    )
    assert data.classes == ["No", "Yes"]
    found = mapping(data.source("test").batch(torch.tensor([1]), CLEAN).inputs)
    assert int(found["token_type_ids"].max()) == 1
    with pytest.raises(
        UserError, match=r"data\.names must name the 2 classes of data\.labels, got 3"
    ):
        _ = TextDataModule(
            str(tmp_path), **files, **columns, names=["a", "b", "c"]
        ).classes


def test_the_fingerprint_covers_the_inputs_of_a_teacher(
    root: Path, tmp_path: Path
) -> None:
    same = module(root).fingerprint()
    assert (
        module(root, batch_size=4, fraction=0.5, eval_batch_size=3).fingerprint()
        == same
    )
    (write_sst2(tmp_path) / "SST2" / "test.tsv").write_text("another sentence\t1\n")
    others = [
        module(tmp_path),
        module(root, tokenizer=WordTokenizer(min_count=2)),
        module(root, teacher_tokenizer=SubwordTokenizer(300)),
        module(root, augment=SyntheticSentences()),
        module(root, augment=SyntheticSentences(), augmentation_seed=1),
    ]
    found = [other.fingerprint() for other in others]
    assert all(a != b for at, a in enumerate(found) for b in [same, *found[:at]])
    assert [name for name in same if found[0][name] != same[name]] == ["samples"]


def test_glue_layout(tmp_path: Path) -> None:
    (tmp_path / "SST-2").mkdir()
    for name, samples in (("train", 6), ("dev", 4)):
        rows = [
            f"{line.partition(chr(9))[0]} \t{at % 2}"
            for at, line in enumerate(lines(samples))
        ]
        (tmp_path / "SST-2" / f"{name}.tsv").write_text(
            "\n".join(["sentence\tlabel", *rows]) + "\n"
        )
    spec = module(tmp_path).spec
    assert spec.samples == {"train": 6, "validation": 4, "test": 4}


def test_predictions_are_written_with_class_names_and_texts(
    root: Path, tmp_path: Path
) -> None:
    (tmp_path / "raw.txt").write_text("a warm film\n\nso dull\n")
    data = module(root, predict_file=str(tmp_path / "raw.txt"))
    (batch,) = served(data.predict_dataloader(), 0)
    assert batch.target.tolist() == [-100, -100]
    said = {
        "index": torch.tensor([0, 1]),
        "logits": torch.tensor([[0.0, 1.0], [2.0, -2.0]]),
    }
    path = data.write_predictions(said, tmp_path)
    assert path.read_text() == (
        "label\tnegative\tpositive\ttext\npositive\t0.268941\t0.731059\ta warm film\nnegative\t0.982014\t0.017986\tso dull\n"
    )


def test_each_prediction_is_one_line(root: Path, tmp_path: Path) -> None:
    data = module(root)
    data._raw["test"] = Texts([("two\nlines and a\ttab",)], torch.tensor([0]))
    path = data.write_predictions(
        {"index": torch.tensor([0]), "logits": torch.zeros(1, 2)}, tmp_path
    )
    assert path.read_text().splitlines()[1:] == [
        "negative\t0.500000\t0.500000\ttwo lines and a tab"
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"fraction": 0.0}, r"data\.fraction must be a fraction in \(0, 1\], got 0"),
        (
            {"label_fraction": 1.5},
            r"data\.label_fraction must be a fraction in \[0, 1\], got 1\.5",
        ),
        (
            {"validation": 1.0},
            r"data\.validation must be a fraction in \[0, 1\), got 1",
        ),
        (
            {"batch_size": 0},
            "data.batch_size, data.eval_batch_size and data.pool must be at least 1",
        ),
        (
            {"views": 2},
            r"data\.views must be 1 to 1, the number of variants of a sentence, got 2",
        ),
        (
            {"views": 22, "augment": SyntheticSentences()},
            r"data\.views must be 1 to 21",
        ),
    ],
)
def test_bad_arguments(root: Path, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        module(root, **arguments)


def test_the_error_for_missing_data_names_the_expected_folder(tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"SST-2: there is no file .*SST2/train\.tsv; point --data\.root or KD_DATA_ROOT",
    ):
        _ = module(tmp_path).spec


def test_the_real_data(data_root: Path) -> None:
    if not (data_root / "SST2").is_dir():
        pytest.skip("no SST2 below the data root")
    spec = SST2DataModule(str(data_root)).spec
    assert spec.samples == {"train": 6920, "validation": 872, "test": 1821}
    assert spec.cut == {"train": 0, "test": 0}
    data = SST2DataModule(str(data_root))
    batches = served(data.loader("train"), 0)
    real = sum(int(mapping(batch.inputs)["attention_mask"].sum()) for batch in batches)
    assert (
        real / sum(mapping(batch.inputs)["attention_mask"].numel() for batch in batches)
        > 0.9
    )
    assert torch.bincount(data.raw("train").target).tolist() == [3310, 3610]
