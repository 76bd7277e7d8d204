"""Markdown tables: their rule, and cells that would break them."""

import pytest

from idml_zoo.reports.markdown import markdown_table


def test_a_table_of_text_and_numbers():
    assert markdown_table(["row", "R@1"], [["a", "50.0"]]) == "| row | R@1 |\n| --- | ---: |\n| a | 50.0 |"
    assert markdown_table(["n", "row"], iter([["1", "a"]]), "rl", tight=True) == "| n | row |\n|---:|---|\n| 1 | a |"
    assert markdown_table(["row"], []) == "| row |\n| --- |"


def test_a_cell_cannot_break_the_table():
    table = markdown_table(["a|b"], [["one | two"], ["first\n  second"]])
    assert table.splitlines() == ["| a\\|b |", "| --- |", "| one \\| two |", "| first second |"]


def test_a_wrong_number_of_columns_is_an_error():
    with pytest.raises(ValueError, match="a row has 1 columns, the header 2"):
        markdown_table(["a", "b"], [["1", "2"], ["1"]])
    with pytest.raises(ValueError, match="align has 3 columns, the header 2"):
        markdown_table(["a", "b"], [], "llr")
