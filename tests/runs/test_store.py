import pandas as pd
import pytest

from sgpo_lib.runs import store


def test_a_table_is_recalled_only_for_what_it_was_made_from(tmp_path):
    table = pd.DataFrame({"prompt_id": ["a", "b"], "response": ["x", ""]})
    origin = {"seed": 0, "generation": {"temperature": 0.7}}
    assert store.recall(tmp_path / "new" / "t.parquet", origin) is None
    store.keep(tmp_path / "new" / "t.parquet", table, origin)
    recalled = store.recall(tmp_path / "new" / "t.parquet", origin)
    pd.testing.assert_frame_equal(recalled, table, check_dtype=False)
    assert store.recall(tmp_path / "new" / "t.parquet", origin | {"seed": 1}) is None


def test_a_damaged_file_counts_as_none(tmp_path):
    file = tmp_path / "t.parquet"
    store.keep(file, pd.DataFrame({"a": [1]}), {})
    file.write_bytes(file.read_bytes()[:-5])
    assert store.recall(file, {}) is None


def test_a_failed_write_leaves_the_file_as_it_was_and_nothing_else(tmp_path):
    file = tmp_path / "t.json"
    file.write_text("before")
    with pytest.raises(AttributeError), store.replacing(file) as temporary:
        temporary.write_bytes(b"half") and temporary.no_such_attribute
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("t.json", "before")]
