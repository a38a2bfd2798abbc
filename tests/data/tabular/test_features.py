"""The encoding of features, against scikit-learn's preprocessing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from kd_lightning.data.tabular.features import FeatureEncoder
from kd_lightning.data.tabular.files import Table
from kd_lightning.data.tabular.fitting import Impute, fit_features
from tests.training.small import complaint

FITS = np.arange(30)
"""The training rows of a table of 40."""


def table(missing: bool = False) -> Table:
    drawn = np.random.default_rng(0)
    numbers = drawn.normal(5, 3, 40).round(1)
    texts = drawn.integers(0, 20, 40).astype(np.str_)
    cities = drawn.choice(["Aachen", "Bonn", "Celle"], 40)
    if missing:
        numbers[::7] = np.nan
        texts[3] = "NA"
        cities[5] = ""
    return {"x": numbers, "y": texts, "city": cities, "constant": np.full(40, 2.0)}


def fit(content: Table, **changes: Any) -> FeatureEncoder:
    settings: dict[str, Any] = {
        "names": list(content),
        "categorical": ["city"],
        "rows": FITS,
        "standardize": True,
        "impute": None,
        "unknown": "error",
    }
    return fit_features(content, **{**settings, **changes})


def test_statistics_are_those_of_the_training_rows() -> None:
    content = table()
    inputs = fit(content).encode(content).numpy()
    numbers = np.stack([content["x"].astype(float), content["y"].astype(float)], axis=1)
    expected = StandardScaler().fit(numbers[FITS]).transform(numbers)
    np.testing.assert_allclose(inputs[:, :2], expected, rtol=1e-5, atol=1e-6)
    cities = content["city"][:, None]
    one_hot = OneHotEncoder(sparse_output=False).fit(cities[FITS]).transform(cities)
    np.testing.assert_array_equal(inputs[:, 2:5], one_hot)
    assert not inputs[:, 5].any()


@pytest.mark.parametrize("impute", ["mean", "median", "most_frequent"])
def test_missing_values_are_imputed_from_the_training_rows(impute: Impute) -> None:
    content = table(missing=True)
    inputs = fit(content, impute=impute).encode(content).numpy()
    texts = np.where(content["y"] == "NA", "nan", content["y"])
    numbers = np.stack([content["x"].astype(float), texts.astype(float)], axis=1)
    filled = SimpleImputer(strategy=impute).fit(numbers[FITS]).transform(numbers)
    expected = StandardScaler().fit(filled[FITS]).transform(filled)
    np.testing.assert_allclose(inputs[:, :2], expected, rtol=1e-5, atol=1e-6)
    values, counts = np.unique(content["city"][FITS], return_counts=True)
    counts[values == ""] = 0
    most_frequent = sorted({"Aachen", "Bonn", "Celle"}).index(values[counts.argmax()])
    assert inputs[5, 2:5].argmax() == most_frequent


def test_missing_values_are_refused_with_column_and_count() -> None:
    message = complaint(lambda: fit(table(missing=True)))
    assert message.startswith(
        "column 'x' has no value in 6 of 40 rows; set data.impute"
    )


def test_a_file_with_missing_values_is_refused_after_a_fit_without() -> None:
    encoder = fit(table())
    assert "column 'x' has no value" in complaint(
        lambda: encoder.encode(table(missing=True))
    )


def test_without_standardization_numbers_stay_as_they_are() -> None:
    content = table()
    inputs = fit(content, standardize=False).encode(content).numpy()
    np.testing.assert_array_equal(inputs[:, 0], content["x"].astype(np.float32))


def test_unknown_categories_are_refused_or_zeros() -> None:
    content = table()
    other = {**content, "city": np.array(["Duisburg", *content["city"][1:]])}
    message = complaint(lambda: fit(content).encode(other))
    assert (
        "has a category that the training rows lack in 1 rows, such as 'Duisburg'"
        in message
    )
    inputs = fit(content, unknown="zeros").encode(other).numpy()
    assert not inputs[0, 2:5].any()
    assert inputs[1:, 2:5].sum(1).tolist() == [1.0] * 39


def test_numbers_can_be_categories() -> None:
    content: Table = {"code": np.array([3.0, 10.0, 3.0, 1.0])}
    encoder = fit(content, categorical=["code"], rows=np.arange(4))
    assert encoder.state()[0]["categories"] == ("1", "3", "10")


def test_a_column_of_texts_must_be_listed_as_categorical() -> None:
    message = complaint(lambda: fit(table(), categorical=[]))
    assert message.startswith("column 'city' must hold numbers, but it holds ")
    assert "list it in data.categorical" in message


def test_infinite_values_are_refused() -> None:
    content: Table = {"x": np.array(["1", "inf", "2"])}
    message = complaint(lambda: fit(content, categorical=[], rows=np.arange(3)))
    assert message == "column 'x' has an infinite value in 1 rows; remove them"


def test_a_column_without_any_training_value_cannot_be_imputed() -> None:
    content: Table = {"x": np.array([np.nan, np.nan, 1.0])}
    message = complaint(
        lambda: fit(content, categorical=[], rows=np.arange(2), impute="mean")
    )
    assert message == "column 'x' has no value in any training row to impute from"


def test_the_state_restores_the_encoder() -> None:
    content = table(missing=True)
    encoder = fit(content, impute="median", unknown="zeros")
    assert FeatureEncoder.from_state(encoder.state()) == encoder
