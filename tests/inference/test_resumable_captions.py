import json
import os
import shutil
from pathlib import Path

import pytest
import tiny

from hf_distinct.data.images import ImageError
from hf_distinct.inference.captioning import Captioner
from hf_distinct.inference.resumable_captions import ResumableCaptions

COUNT = 21  # three parts of eight pictures


@pytest.fixture(scope="module")
def captioner(tiny_models) -> Captioner:
    return Captioner(tiny_models / "captioner", device="cpu")


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, picture in enumerate(tiny.scenes(COUNT)["image"]):
        picture.save(folder / f"{number:02}.png")
    return folder


def a_run(captioner: Captioner, pictures: Path, **made_by: object) -> ResumableCaptions:
    output = pictures.parent / "out" / "captions.jsonl"
    return ResumableCaptions(captioner, output, str(pictures), {"--model": "x", "--seed": 0, **made_by}, batch_size=2)


def finish(run: ResumableCaptions) -> list[tuple]:
    run.write_parts()
    rows = [(place, name, str(said)) for place, name, said in run.rows()]
    temporary = run.output.with_name("temporary")
    temporary.write_text(json.dumps(rows))
    run.join(temporary, run.output)
    temporary.rename(run.output)
    run.finish()
    return rows


def test_rows_are_those_of_the_captioner_in_order(captioner, pictures):
    (pictures / "05.png").write_bytes(b"no picture")
    run = a_run(captioner, pictures)
    assert run.begin() is None
    run.write_parts()
    assert run.parts.count == 3 and not run.parts.missing()
    rows = list(run.rows())
    paths = sorted(pictures.iterdir())
    said = list(captioner.stream(paths, batch_size=2))
    assert [name for _, name, _ in rows] == [path.name for path in paths]
    assert [place for place, _, _ in rows] == list(range(COUNT))
    assert [str(found) for _, _, found in rows] == [str(wanted) for wanted in said]
    assert isinstance(rows[5][2], ImageError) and "05.png" in str(rows[5][2])


def test_a_broken_part_is_written_again(captioner, pictures, caplog):
    run = a_run(captioner, pictures)
    run.begin()
    run.write_parts()
    wanted = list(run.rows())
    path = run.parts.path(1)
    content = bytearray(path.read_bytes())
    content[-30] ^= 1
    path.write_bytes(content)
    assert list(run.rows()) == wanted
    assert "A part of the captions is written again" in caplog.text and "000001" in caplog.text


def test_finished_captions_are_not_written_again(captioner, pictures):
    run = a_run(captioner, pictures)
    run.begin()
    finish(run)
    written = run.output.stat()
    assert a_run(captioner, pictures).begin() == run.output and run.output.stat() == written
    run.parts.folder.mkdir()  # killed between the last two acts
    assert a_run(captioner, pictures).begin() == run.output and not run.parts.folder.exists()
    run.output.write_text("mine")
    assert a_run(captioner, pictures).begin() is None


@pytest.mark.parametrize("mine", [False, True])
def test_a_file_that_was_moved_into_place_just_before_a_kill_is_known(captioner, pictures, monkeypatch, mine):
    run = a_run(captioner, pictures)
    run.begin()
    monkeypatch.setattr(run, "finish", lambda: None)
    rows = finish(run)
    if mine:
        run.output.write_text("mine")
    again = a_run(captioner, pictures)
    assert again.begin() is None and not again.parts.missing()
    assert run.output.exists() == mine and len(list(again.rows())) == len(rows)


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("setting", r"captions\.jsonl was begun with other settings: --seed \(0 then, 1 now\)\. "),
        ("option", r"settings: --guidance \(nothing then, 2 now\)\. "),
        ("added", r"settings: the pictures \(21 files \(digest .*\) then, 22 files \(digest"),
        ("changed", r"settings: the pictures \(21 files \(digest .*\) then, 21 files \(digest"),
    ],
)
def test_other_settings_or_pictures_are_refused_in_one_line(captioner, pictures, finished, change, message):
    run = a_run(captioner, pictures)
    run.begin()
    if finished:
        finish(run)
    made_by = {"setting": {"--seed": 1}, "option": {"--guidance": 2}}.get(change, {})
    if change == "added":
        shutil.copy(pictures / "00.png", pictures / "new.png")
    elif change == "changed":
        os.utime(pictures / "03.png", (1, 1))
    with pytest.raises(ValueError, match=message) as error:
        a_run(captioner, pictures, **made_by).begin()
    assert "\n" not in str(error.value) and f"to begin anew, delete {run.record_file}" in str(error.value)
    run.record_file.unlink()
    anew = a_run(captioner, pictures, **made_by)
    assert anew.begin() is None and len(anew.parts.missing()) == 3
    assert len(finish(anew)) == COUNT + (change == "added")


def test_a_broken_record_is_named(captioner, pictures):
    run = a_run(captioner, pictures)
    run.begin()
    run.record_file.write_text(run.record_file.read_text().replace('"--seed": "0"', '"--seed": "1"'))
    with pytest.raises(ValueError, match=r"captions\.jsonl\.run\.json: its bytes have changed.*delete it"):
        a_run(captioner, pictures).begin()


def test_a_model_is_known_by_all_that_decides_its_captions(tiny_models, captioner, tmp_path):
    moved = Path(shutil.copytree(tiny_models / "captioner", tmp_path / "moved"))
    assert Captioner(moved, device="cpu").fingerprint() == captioner.fingerprint()
    config = json.loads((moved / "generation_config.json").read_text())
    (moved / "generation_config.json").write_text(json.dumps(config | {"num_beams": 2}))
    assert Captioner(moved, device="cpu").fingerprint() != captioner.fingerprint()
    other = Captioner(tiny_models / "captioner", device="cpu")
    before = other.fingerprint()
    next(other.model.parameters()).data.flatten()[0] += 1
    assert before == captioner.fingerprint() != other.fingerprint()
