"""The latency table: which entry a candidate gets, what a file may hold, round trips."""

from pathlib import Path

import pytest

from nni_bayes_nas.complexity.latency import LatencyTable, median_ms, read_latency_table, write_latency_table
from nni_bayes_nas.errors import ConfigError

ENTRIES = {"cell0/conv@8x4x4": 1.0, "cell0/conv": 2.0, "conv@8x4x4": 3.0, "conv": 4.0, "*/po?l*": 5.0, "*": 6.0}


def test_the_most_specific_entry_counts_and_wildcards_come_last() -> None:
    table = LatencyTable(ENTRIES)
    assert table.find("cell0", "conv", "8x4x4") == 1.0
    assert table.find("cell0", "conv", "8x2x2") == 2.0
    assert table.find("cell1", "conv", "8x4x4") == 3.0
    assert table.find("cell1", "conv") == 4.0
    assert table.find("cell1", "pool_3", "8x4x4") == 5.0
    assert table.find("cell1", "skip") == 6.0
    assert LatencyTable({"conv": 1.0, "c*v_": 2.0}).find("cell1", "skip") is None


def test_only_star_and_question_mark_are_wildcards() -> None:
    table = LatencyTable({"op[1](a=2)*": 1.0})
    assert table.find("", "op[1](a=2)", "3x3") == 1.0
    assert table.find("", "op1(a=2)", "3x3") is None


def test_fixed_is_zero_unless_given() -> None:
    assert LatencyTable(ENTRIES).fixed == 0.0
    assert LatencyTable({"fixed": 0.5, "conv": 1}).fixed == 0.5


@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".json", ".csv"])
def test_what_is_written_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"table{suffix}"
    write_latency_table(path, LatencyTable({**ENTRIES, "Conv(kernel=3,width=8)": 0.25}), {"threads": 1, "device": "x"})
    table = read_latency_table(path)
    assert table.entries == {**ENTRIES, "Conv(kernel=3,width=8)": 0.25}
    assert list(table.entries) == [*ENTRIES, "Conv(kernel=3,width=8)"]
    assert "threads" in path.read_text(encoding="utf-8")
    assert table.environment == ({} if suffix == ".csv" else {"threads": 1, "device": "x"})


def test_a_file_by_hand_needs_no_frame(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("sep_conv_3x3: 0.42\nskip: 0\nfast: 1e-3\n", encoding="utf-8")
    assert read_latency_table(tmp_path / "a.yaml").entries == {"sep_conv_3x3": 0.42, "skip": 0, "fast": 1e-3}
    (tmp_path / "a.csv").write_text("operation,milliseconds\n\nsep_conv_3x3, 0.42\n", encoding="utf-8")
    assert read_latency_table(tmp_path / "a.csv").entries == {"sep_conv_3x3": 0.42}
    (tmp_path / "b.csv").write_text("Operation, Milliseconds\nconv, 0.5\n", encoding="utf-8")
    assert read_latency_table(tmp_path / "b.csv").entries == {"conv": 0.5}


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.txt", "conv: 1", r"one of \.yaml"),
        ("a.yaml", "conv: fast", "'conv': 'fast'"),
        ("a.yaml", "conv: true", "'conv': True"),
        ("a.yaml", "conv: -1", "not negative"),
        ("a.yaml", "conv: .nan", "finite"),
        ("a.yaml", "conv: 1\nconv: 2", "conv"),
        ("a.yaml", "- conv", "got list"),
        ("a.yaml", "{}", "has no entry"),
        ("a.yaml", "{", "valid YAML"),
        ("a.json", '{"conv": 1', "no JSON"),
        ("a.json", '{"conv": 1, "conv": 2}', "repeats 'conv'"),
        ("a.json", '{"latency_ms": {"conv": 1}, "pool": 2}', "'pool'; move it under latency_ms"),
        ("a.yaml", "conv: 1\nFixed: 2", "'Fixed', did you mean 'fixed'"),
        ("a.csv", "conv", "line 1"),
        ("a.csv", "conv,1\nconv,2", "line 2 repeats 'conv'"),
        ("a.csv", "conv,inf", "finite"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=says) as caught:
        read_latency_table(tmp_path / name)
    assert str(caught.value).count("\n") <= 2


def test_a_missing_file_is_refused_and_an_unknown_kind_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_latency_table(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"one of \.yaml"):
        write_latency_table(tmp_path / "a.txt", {"conv": 1.0})


def test_the_median_leaves_the_warm_up_out() -> None:
    seconds = iter([9.0, 9.0, 0.001, 0.003, 0.002])
    assert median_ms(lambda: next(seconds), repeats=3, warmup=2) == pytest.approx(2.0)
    with pytest.raises(ConfigError, match="at least 1"):
        median_ms(lambda: 0.0, repeats=0)
