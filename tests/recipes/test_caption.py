"""recipes/caption.py as a person runs it."""

import json
import tarfile

import forked
import pyarrow.parquet as pq
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
    done = forked.run("caption.py", folder, *flags)
    assert "is not as a recipe wrote it, so it is kept. The new file is captions.1.jsonl" in done.stderr
    done = forked.run("caption.py", folder, *flags)
    assert f"{output / 'captions.1.jsonl'} has all captions already. To write them again, delete" in done.stdout
    assert [(output / f"captions{end}.jsonl").read_text() for end in ("", ".1")] == ["mine", said]
    assert sorted(path.name for path in output.iterdir() if path.name[0] != ".") == [
        "captions.1.jsonl", "captions.html", "captions.jsonl", "captions.jsonl.run.json",
    ]  # fmt: skip
    done = forked.run("caption.py", folder, *flags, "--guidance", 2, fails=True)
    assert "error: " in done.stderr and "--guidance (1.0 then, 2.0 now)" in done.stderr.splitlines()[-1]


def test_tar_shards_become_a_parquet_file(tiny_models, tmp_path):
    pictures = tiny.scenes(3)["image"]
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
        with tarfile.open(tmp_path / f"shard-{number}.tar", "w") as shard:
            shard.add(tmp_path / f"{number}.png", f"{number}.png")
    flags = ["--model", tiny_models / "captioner", "--num_samples", 2, "--output_file", "said.parquet"]
    forked.run("caption.py", tmp_path / "shard-{0..2}.tar", *flags, "--output_dir", tmp_path / "out")
    assert pq.read_table(tmp_path / "out" / "said.parquet").to_pylist() == [
        {"file_name": f"shard-{number}.tar/{number}.png", "captions": said}
        for number, said in enumerate(hf_distinct.caption(pictures, tiny_models / "captioner", num_samples=2))
    ]
    sheet = (tmp_path / "out" / "captions.html").read_text()
    assert sheet.count('src="data:image/jpeg;base64,') == 3 and "<small>shard-1.tar/1.png</small>" in sheet


def test_no_readable_picture_is_an_error(tiny_models, tmp_path):
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8")
    flags = ["--model", tiny_models / "captioner", "--output_dir", tmp_path / "out"]
    done = forked.run("caption.py", tmp_path, *flags, fails=True)
    assert "torn.jpg" in done.stderr and "None of the 1 pictures" in done.stderr.splitlines()[-1]
    assert not list((tmp_path / "out").glob("captions.jsonl"))
