"""Tables: embedded ones, CSV files, and made-up ones."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

from nni_bayes_nas.config import DataConfig
from nni_bayes_nas.errors import DataError
from nni_bayes_nas.experiment.data import load_data
from nni_bayes_nas.experiment.data_tables import load_csv, synthetic


@pytest.mark.parametrize(("name", "n", "features", "classes"), [("wine", 178, 13, 3), ("breast_cancer", 569, 30, 2)])
def test_embedded_tables(name: str, n: int, features: int, classes: int) -> None:
    data = load_data(DataConfig(name=name))
    assert data.shape == (features,) and data.num_classes == classes
    assert sum(len(part) for part in (data.train, data.val, data.test)) == n


def written(path: Path, text: str, **options: Any) -> DataConfig:
    path.write_text(text, encoding="utf-8")
    return DataConfig(name="csv", path=str(path), **options)


def test_csv(tmp_path: Path) -> None:
    x, y = load_csv(written(tmp_path / "a.csv", "a,b,kind\n1,2.5,pear\n\n-3,4e1,apple\n0,0,pear\n"))
    assert x.tolist() == [[1, 2.5], [-3, 40], [0, 0]] and y.tolist() == [1, 0, 1]
    _, y = load_csv(written(tmp_path / "b.csv", "a,y\n1,10\n2,9\n3,10.0\n"))
    assert y.tolist() == [1, 0, 1]
    _, y = load_csv(written(tmp_path / "c.csv", "a,y\n1,0.5\n2,-2\n", task="regression"))
    assert y.tolist() == [0.5, -2]
    lines = "\n".join(f"{i % 7},{i % 5},{'ab'[i % 2]}" for i in range(60))
    data = load_data(written(tmp_path / "d.csv", f"a,b,y\n{lines}\n"))
    assert data.shape == (2,) and data.num_classes == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has 0 lines and 0 columns"),
        ("a,b\n", "has 1 lines and 2 columns"),
        ("a\n1\n", "has 2 lines and 1 columns"),
        ("a,b\n1,2\n1\n", "line 3 of .* must have 2 columns, got 1"),
        ("a,b\n\n1,2\n\nx,2\n", "column 'a' of .* must hold numbers, but line 5 has 'x'"),
        ("a,b\nnan,2\n", "must hold numbers, but line 2 has 'nan'"),
        ("1,2\n3,4\n", "must begin with a line of names, but .* begins with numbers"),
        ("a,b\n1,\n", "line 2 of .* must have a target in its last column"),
    ],
)
def test_no_table(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        load_csv(written(tmp_path / "a.csv", text))


def test_measured_numbers_are_no_classes(tmp_path: Path) -> None:
    """30 numbers in 60 lines; as words they are classes, and so are 30 numbers in 300 lines."""
    lines = [f"{i},{{}}{i % 30}" for i in range(300)]
    few = "a,y\n" + "\n".join(lines[:60])
    with pytest.raises(DataError, match=r"30 different numbers in 60 lines; if it was measured set data\.task"):
        load_csv(written(tmp_path / "a.csv", few.replace("{}", "")))
    for text in (few.replace("{}", "k"), "a,y\n" + "\n".join(lines).replace("{}", "")):
        assert len(set(load_csv(written(tmp_path / "b.csv", text))[1])) == 30
    assert load_csv(written(tmp_path / "c.csv", few.replace("{}", ""), task="regression"))[1][31] == 1.0


def test_missing_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="must name a CSV file, but there is no /"):
        load_csv(DataConfig(name="csv", path=str(tmp_path / "none.csv")))
    monkeypatch.setenv("HOME", str(tmp_path))
    written(tmp_path / "home.csv", "a,y\n1,2\n")
    assert load_csv(DataConfig(name="csv", path="~/home.csv"))[0].tolist() == [[1.0]]
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="in UTF-8"):
        load_csv(DataConfig(name="csv", path=str(tmp_path / "bytes.csv")))


@pytest.mark.parametrize("kind", ["blobs", "parity", "linear"])
def test_made_up_tables_can_be_learned(kind: Any) -> None:
    x, y = synthetic(kind, n_classes=2 if kind == "parity" else 4, n_informative=3, noise=0.1)
    again = synthetic(kind, n_classes=2 if kind == "parity" else 4, n_informative=3, noise=0.1)
    assert x.shape == (2000, 24) and np.array_equal(x, again[0]) and np.array_equal(y, again[1])
    assert set(y.tolist()) == set(range(2 if kind == "parity" else 4))
    forest = RandomForestClassifier(60, random_state=0, max_features=None).fit(x[:1500], y[:1500])
    straight = LogisticRegression(max_iter=500).fit(x[:1500], y[:1500])
    scores = forest.score(x[1500:], y[1500:]), straight.score(x[1500:], y[1500:])
    assert max(scores) > 0.8
    if kind == "parity":
        assert scores[1] < 0.6
    # Three columns say it, those that repeat them a little, most of the others nothing.
    assert (np.sort(forest.feature_importances_)[:14] < 0.03).all()


def test_no_made_up_table() -> None:
    with pytest.raises(DataError, match="n_informative=5"):
        synthetic(n_features=4, n_informative=5)
    with pytest.raises(DataError, match="n_informative=1 gives 2 with linear"):
        synthetic("linear", n_informative=1)
    with pytest.raises(DataError, match="blobs, parity or linear, got 'rings'"):
        synthetic("rings")  # type: ignore[arg-type]
    config = DataConfig(name="nni_bayes_nas.experiment.data_tables:synthetic", args={"kind": "linear", "seed": 3})
    assert load_data(config).shape == (24,)
