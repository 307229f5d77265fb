"""Tables of architectures: values, regret, rank, and what a bad file gets."""

import gzip

import pytest

from nni_bayes_nas.errors import ConfigError, DataError
from nni_bayes_nas.experiment.benchmark_table import BenchmarkTable, Place

TEXT = "arch,params,accuracy\na,10,93.5\nb,5,94.0\nc,1,93.5\nd,20,10\n"


@pytest.fixture(params=["table.csv", "table.csv.gz"])
def table(request, tmp_path):
    path = tmp_path / request.param
    path.write_bytes(gzip.compress(TEXT.encode()) if path.suffix == ".gz" else TEXT.encode())
    return BenchmarkTable(path)


def test_places(table):
    assert table.place("b", "accuracy") == Place(94.0, 0.0, 1, 4)
    assert table.place("a", "accuracy") == table.place("c", "accuracy") == Place(93.5, 0.5, 2, 4)
    assert table.place("d", "accuracy").rank == 4
    assert len(table) == 4 and "a" in table and "e" not in table and list(table) == ["a", "b", "c", "d"]
    assert table.values("params") == {"a": 10, "b": 5, "c": 1, "d": 20}


def test_questions_that_it_cannot_answer(table):
    with pytest.raises(ConfigError, match=r"must be one of the 4 in .*, got 'x'; one is 'a'"):
        table.value("x", "accuracy")
    with pytest.raises(ConfigError, match="column must be one of params, accuracy, got 'loss'"):
        table.place("a", "loss")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "must have a column 'arch', got"),
        ("name,accuracy\na,1\n", "must have a column 'arch', got name, accuracy"),
        ("arch,accuracy\n", "must hold architectures"),
        ("arch,accuracy\na,1\na,2\n", "every architecture once, but a twice"),
    ],
)
def test_bad_files(text, match, tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=match):
        BenchmarkTable(path)


@pytest.mark.parametrize("value", ["", "nan", "high"])
def test_values_that_are_no_numbers(value, tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(f"arch,accuracy\na,{value}\nb,1\n")
    with pytest.raises(DataError, match="must hold numbers, but accuracy of a is"):
        BenchmarkTable(path).place("b", "accuracy")


def test_files_that_are_not_there_or_not_gzipped(tmp_path):
    with pytest.raises(DataError, match="there is none at"):
        BenchmarkTable(tmp_path / "table.csv")
    path = tmp_path / "table.csv.gz"
    path.write_text(TEXT)
    with pytest.raises(DataError, match="must be CSV, gzipped"):
        BenchmarkTable(path)


def test_files_that_are_damaged(tmp_path):
    whole = gzip.compress(b"arch,value\n" + b"".join(b"a%d,%d\n" % (i, i * 7919) for i in range(2000)))
    path = tmp_path / "table.csv.gz"
    path.write_bytes(whole[:200] + bytes(b ^ 0x5A for b in whole[200:260]) + whole[260:])
    with pytest.raises(DataError, match="must be CSV, gzipped"):
        BenchmarkTable(path)
    short = tmp_path / "short.csv"
    short.write_text("value,arch\n1,a\n2\n3,b\n", encoding="utf-8")
    with pytest.raises(DataError, match="must have 'arch' in every row, but line 3 ends before"):
        BenchmarkTable(short)
