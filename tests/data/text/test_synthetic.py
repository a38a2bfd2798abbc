"""Synthetic sentences: frequencies of the changes, and the inputs of each draw."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from kd_lightning.data import SyntheticSentences
from kd_lightning.data.text.tagger import part_of_speech
from kd_lightning.data.text.words import MASK
from kd_lightning.errors import UserError
from tests.sentences import lines

pytest.importorskip(
    "textblob", reason="textblob is not installed: pip install 'kd_lightning[text]'"
)

TEXTS: list[tuple[str, ...]] = [(line.partition("\t")[0],) for line in lines(400)]


def trained(
    texts: list[tuple[str, ...]] = TEXTS, **arguments: float
) -> SyntheticSentences:
    made = SyntheticSentences(**arguments)  # type: ignore[arg-type]
    made.learn(texts)
    return made


def all_views(
    augment: SyntheticSentences, texts: list[tuple[str, ...]] = TEXTS, seed: int = 0
) -> list[list[tuple[str, ...]]]:
    return [augment.sentences(view, seed, texts) for view in range(augment.variants)]


def near(share: float, expected: float, count: int) -> bool:
    """Within five standard errors of a share of `count` draws."""
    return abs(share - expected) <= 5 * math.sqrt(expected * (1 - expected) / count)


def test_each_variant_is_shown_once_and_each_view_is_a_fair_sample() -> None:
    augment = trained(copies=20)
    rows = torch.arange(len(TEXTS))
    variants = torch.stack([augment.variant(rows, view) for view in range(21)])
    assert torch.equal(
        variants.sort(0).values, torch.arange(21)[:, None].expand(21, len(rows))
    )
    assert torch.equal(augment.variant(rows, 21), variants[0])
    real = (variants == 0).sum(1)
    assert int(real.max()) < 3 * len(rows) / 21
    for view, shown in enumerate(all_views(augment)):
        kept = [a == b for a, b in zip(shown, TEXTS, strict=True)]
        assert all(
            kept[row] for row in torch.nonzero(variants[view] == 0).flatten().tolist()
        )


def test_frequencies_of_masks_and_replacements() -> None:
    augment = trained(mask=0.2, replace=0.3, ngram=0.0, copies=10)
    variants = [augment.variant(torch.arange(len(TEXTS)), view) for view in range(11)]
    words = masked = changed = 0
    for variant, shown in zip(variants, all_views(augment), strict=True):
        for number, (new,), (old,) in zip(variant.tolist(), shown, TEXTS, strict=True):
            if number:
                assert len(new.split()) == len(old.split())
                pairs = list(zip(new.split(), old.split(), strict=True))
                words += len(pairs)
                masked += sum(a == MASK for a, _ in pairs)
                changed += sum(a not in (MASK, b) for a, b in pairs)
    assert near(masked / words, 0.2, words)
    assert 0.05 < changed / words < 0.3  # a replacement can be the same word


def test_replacements_follow_the_frequencies_of_their_part_of_speech() -> None:
    augment = trained(mask=0.0, replace=1.0, ngram=0.0, copies=10)
    split = [text.split() for (text,) in TEXTS]
    flat = [word for words in split for word in words]
    tags = part_of_speech(split)
    by_tag: dict[str, Counter[str]] = {}
    for word, tag in zip(flat, tags, strict=True):
        by_tag.setdefault(tag, Counter())[word] += 1
    assert len(by_tag) > 4
    drawn: dict[str, Counter[str]] = {tag: Counter() for tag in by_tag}
    for view, shown in enumerate(all_views(augment)):
        keep = (
            augment.variant(torch.arange(len(TEXTS)), view).repeat_interleave(
                torch.tensor([len(w) for w in split])
            )
            == 0
        )
        new = [word for (text,) in shown for word in text.split()]
        for word, tag, real in zip(new, tags, keep.tolist(), strict=True):
            if not real:
                drawn[tag][word] += 1
    for tag, counts in by_tag.items():
        assert set(drawn[tag]) <= set(counts), tag
        word, count = counts.most_common(1)[0]
        assert near(
            drawn[tag][word] / drawn[tag].total(),
            count / counts.total(),
            drawn[tag].total(),
        ), (tag, word)


def test_runs_of_words() -> None:
    augment = trained(mask=0.0, replace=0.0, ngram=0.25, longest=5, copies=20)
    lengths: Counter[int] = Counter()
    synthetic = 0
    for view, shown in enumerate(all_views(augment)):
        variant = augment.variant(torch.arange(len(TEXTS)), view).tolist()
        for number, (new,), (old,) in zip(variant, shown, TEXTS, strict=True):
            assert f" {new} " in f" {old} "
            synthetic += number > 0
            if new != old:
                lengths[len(new.split())] += 1
    assert near(lengths.total() / synthetic, 0.25, synthetic)
    assert set(lengths) == {1, 2, 3, 4, 5}
    assert all(
        near(lengths[n] / lengths.total(), 0.2, lengths.total()) for n in range(1, 6)
    )


def test_draws_depend_on_seed_row_and_variant_only() -> None:
    augment, again = trained(copies=4), trained(copies=4)
    assert all_views(augment) == all_views(again)
    assert all_views(augment, seed=1) != all_views(augment)
    views = [dict(enumerate(shown)) for shown in all_views(augment)]
    assert len({tuple(view.values()) for view in views}) == 5
    # The same variant of a row is the same sentence in any view.
    row = torch.tensor([7])
    variant = augment.variant(row, 2)
    assert augment.sentences(2 + augment.variants, 0, TEXTS)[7] == views[2][7]
    assert int(augment.variant(row, 2 + augment.variants)) == int(variant)


def test_variants_of_a_pair_change_the_first_text_the_second_or_both() -> None:
    pairs: list[tuple[str, ...]] = [
        (text, TEXTS[-1 - at][0]) for at, (text,) in enumerate(TEXTS)
    ]
    augment = trained(
        pairs, mask=1.0, replace=0.0, ngram=0.0, copies=6
    )  # a changed text consists of masks
    kinds: dict[int, set[tuple[bool, bool]]] = {}
    for view, shown in enumerate(all_views(augment, pairs)):
        for variant, new in zip(
            augment.variant(torch.arange(len(pairs)), view).tolist(), shown, strict=True
        ):
            kinds.setdefault(variant, set()).add((MASK in new[0], MASK in new[1]))
    expected = {0: (False, False), 1: (True, False), 2: (False, True), 3: (True, True)}
    assert kinds == {
        variant: {expected[variant and (variant - 1) % 3 + 1]} for variant in range(7)
    }


def test_parts_of_speech() -> None:
    assert part_of_speech(
        [["the", "film", "is", "n't", "dull", "."], ["she", "laughed"]]
    ) == [
        *("DT", "NN", "VBZ", "RB", "JJ", "."),
        *("PRP", "VBD"),
    ]


def test_fingerprint_names_arguments_and_lexicon() -> None:
    found = SyntheticSentences(mask=0.2).fingerprint()
    assert found["mask"] == 0.2
    assert len(str(found["tags"])) == 16
    assert found != SyntheticSentences().fingerprint()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"mask": -0.1}, "probabilities"),
        ({"mask": 0.6, "replace": 0.5}, "mask \\+ replace at most 1"),
        ({"ngram": 1.1}, "probabilities"),
        ({"copies": 0}, "copies must be at least 1"),
        ({"longest": 0}, "longest and copies must be at least 1, got 0 and 20"),
    ],
)
def test_bad_arguments(arguments: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        SyntheticSentences(**arguments)  # type: ignore[arg-type]
