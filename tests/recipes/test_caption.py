"""recipes/caption.py as a person runs it."""

import json

import forked
import pytest
import tiny

import hf_distinct


def test_a_folder_becomes_lines_and_a_sheet(tiny_models, tmp_path):
    pictures = tiny.scenes(3)["image"]
    folder, output = tmp_path / "a & b", tmp_path / "deep" / "out"
    (folder / "deep" / "er").mkdir(parents=True)
    pictures[0].save(folder / "0.PNG")
    pictures[1].save(folder / "deep" / "1.PNG")
    pictures[2].save(folder / "deep" / "er" / "2.bmp")
    (folder / "torn.jpg").write_bytes(b"\xff\xd8")
    (folder / "notes.txt").write_text("no picture")
    flags = ["--output_dir", output, "--model", tiny_models / "captioner", "--batch_size", 2]
    done = forked.run("caption.py", folder, *flags)
    assert "left out" in done.stderr and "torn.jpg" in done.stderr and "4/4" in done.stderr
    assert "4 of 5 files have an image file extension" in done.stderr
    assert "3 pictures (1 left out)" in done.stdout
    lines = [json.loads(line) for line in (output / "captions.jsonl").read_text().splitlines()]
    assert [line["file_name"] for line in lines] == ["0.PNG", "deep/1.PNG", "deep/er/2.bmp"]
    assert [line["caption"] for line in lines] == hf_distinct.caption(pictures, tiny_models / "captioner")
    sheet = (output / "captions.html").read_text()
    assert sheet.count('src="data:image/jpeg;base64,') == 3 and "<small>deep/1.PNG</small>" in sheet
    assert lines[1]["caption"] in sheet and str(tmp_path) not in sheet  # it is the same wherever it is moved
    said = (output / "captions.jsonl").read_text()
    (output / "captions.jsonl").write_text("mine")
    for _ in range(2):
        done = forked.run("caption.py", folder, *flags)
        assert "is not as a recipe wrote it, so it is kept. The new file is captions.1.jsonl" in done.stderr
    assert [(output / f"captions{end}.jsonl").read_text() for end in ("", ".1")] == ["mine", said]
    assert not list(output.glob("captions.2.*")) + list(output.glob("*unfinished*"))


def test_what_was_captioned_before_a_signal_stays(tmp_path, caplog):
    recipe = forked.module("caption")

    def stopped():
        yield tmp_path / "a.png", "a dog"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recipe.write_lines(stopped(), tmp_path / "lines", tmp_path)
    assert json.loads((tmp_path / "lines").read_text()) == {"file_name": "a.png", "caption": "a dog"}
    assert f"not finished. The captions of 1 pictures are in {tmp_path / 'lines'}" in caplog.text
