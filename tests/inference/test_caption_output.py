import json

import pyarrow.parquet as pq
import pytest

from hf_distinct.inference import caption_output
from hf_distinct.inference.caption_output import caption_writer

ROWS = [("a.jpg", "a dog"), ("b/ü.jpg", ""), ("c\udcff.jpg", "a cat")]


@pytest.mark.parametrize("samples", [False, True])
@pytest.mark.parametrize("ending", caption_output.ENDINGS)
def test_each_picture_is_a_row_in_order(tmp_path, monkeypatch, ending, samples):
    monkeypatch.setattr(caption_output, "GROUP", 2)
    rows = [(name, [said, said + "!"] if samples else said) for name, said in ROWS]
    with caption_writer(tmp_path / "out", ending, samples) as write:
        for row in rows:
            write(*row)
    key = "captions" if samples else "caption"
    if ending == ".jsonl":
        found = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    else:
        found = pq.read_table(tmp_path / "out").to_pylist()
        assert pq.ParquetFile(tmp_path / "out").num_row_groups == 2
        rows[2] = "c?.jpg", rows[2][1]  # parquet has no text that is not UTF-8
    assert found == [{"file_name": name, key: said} for name, said in rows]


def test_no_picture_is_an_empty_file(tmp_path):
    with caption_writer(tmp_path / "out", ".parquet", False):
        pass
    assert pq.read_table(tmp_path / "out").column_names == ["file_name", "caption"]
