"""`hf_distinct.pipeline`: the calls, captions and logits of transformers 4.57's own, on 4.57 and on 5."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, VisionEncoderDecoderModel
from transformers.pipelines.pt_utils import KeyDataset

import hf_distinct
from hf_distinct.data.images import decode_image, to_pixel_values
from hf_distinct.inference.captioning import _PreparedBatches
from hf_distinct.inference.pipelines import (
    ImageToTextPipeline,
    as_captioner,
    load_captioner,
    load_image_processor,
    pipeline,
    save_tokenizer,
)

pytestmark = pytest.mark.both_ends

# What each end does in a fresh process: file name, then captioners, then pictures.
RUN = """
import sys
import torch
import hf_distinct

found = {}
for folder in sys.argv[2:4]:
    captioner = hf_distinct.pipeline("image-to-text", model=folder, device="cpu")
    found[folder] = {"captions": captioner(sys.argv[4:]), "in batches": captioner(sys.argv[4:], batch_size=3)}
    pixels = torch.cat([captioner.preprocess(path)["pixel_values"] for path in sys.argv[4:]])
    ids = captioner.model.generate(pixels, num_beams=2)
    with torch.no_grad():
        logits = captioner.model(pixel_values=pixels, decoder_input_ids=ids).logits
    found[folder] |= {"pixels": pixels, "ids": ids, "logits": logits}
torch.save(found, sys.argv[1])
"""


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Pictures of several sizes and modes."""
    folder, names = tmp_path_factory.mktemp("pictures"), []
    for number, picture in enumerate(hf_distinct.emoji_scenes("test", 6, seed=7)["image"]):
        names.append(str(folder / f"{number}.png"))
        picture.resize((64 + 9 * number, 80 - 11 * number)).convert("RGB" if number % 2 else "P").save(names[-1])
    return names


@pytest.fixture(scope="module")
def captioner(tiny_models: Path) -> ImageToTextPipeline:
    """What `pipeline` gives on 5, made by hand, so that on 4.57 it can be held against transformers' own."""
    folder = tiny_models / "captioner"
    return ImageToTextPipeline(
        model=VisionEncoderDecoderModel.from_pretrained(folder).eval(),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        image_processor=load_image_processor(folder),
        device="cpu",
    )


@pytest.fixture(scope="module")
def address(paths: list[str]) -> Iterator[str]:
    """Where a server on the loopback interface has the pictures."""
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(Path(paths[0]).parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.slow
def test_captions_and_logits_are_the_same_to_the_bit_at_the_other_end(tiny_models, paths, tmp_path):
    """Of captioners that this end saves, the one that is shipped and a ViT; `.ci/run` names the other end's Python."""
    folders = [str(tmp_path / "resaved"), str(tiny_models / "captioner")]
    shipped = pipeline("image-to-text", model=hf_distinct.shipped("captioner"), device="cpu")
    shipped.model.save_pretrained(folders[0])
    shipped.image_processor.save_pretrained(folders[0])
    save_tokenizer(shipped.tokenizer, folders[0])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(hf_distinct.__file__).parents[1])}
    found = [{folders[0]: {"captions": shipped(paths)}}]
    for python in (sys.executable, os.environ.get("OTHER_PYTHON", sys.executable)):
        file = tmp_path / f"{len(found)}.pt"
        subprocess.run([python, "-c", RUN, str(file), *folders, *paths], env=environment, check=True, timeout=300)
        found.append(torch.load(file, weights_only=True))
    assert found[0][folders[0]]["captions"] == found[1][folders[0]]["captions"]
    for folder in folders:
        here, there = (each[folder] for each in found[1:])
        assert here["captions"] == there["captions"] and len({str(caption) for caption in here["captions"]}) > 2
        assert here["in batches"] == there["in batches"]
        for name in ("pixels", "ids", "logits"):
            assert torch.equal(here[name], there[name]), name


ODD = {
    "transparent.png": {}, "transparent.webp": {}, "palette.png": {"transparency": 0}, "grey_alpha.png": {},
    "16_bit.png": {}, "16_bit.tiff": {}, "float.tiff": {}, "one_bit.png": {}, "cmyk.jpg": {}, "turned.jpg": {},
    "animated.gif": {}, "narrow.png": {}, "flat.png": {},
}  # fmt: skip


def odd_picture(name: str, folder: Path) -> Path:
    """A picture of a kind that RGB cannot hold, or hardly."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    picture, kind, settings = Image.fromarray(noise), name.split(".")[0], dict(ODD[name])
    if kind == "transparent":
        picture.putalpha(Image.fromarray(noise[..., 0]))
    elif kind == "grey_alpha":
        picture = picture.convert("LA")
        picture.putalpha(Image.fromarray(noise[..., 0]))
    elif kind == "16_bit":
        picture = Image.fromarray((np.arange(2000).reshape(40, 50) * 30).astype(np.uint16))
    elif kind == "float":
        picture = Image.fromarray(np.linspace(-9, 300, 2000, dtype=np.float32).reshape(40, 50))
    elif kind == "turned":
        settings["exif"] = Image.Exif()
        settings["exif"][0x0112] = 6
    elif kind == "animated":
        settings |= {"save_all": True, "append_images": [Image.fromarray(255 - noise)]}
    else:
        modes = {"palette": "P", "one_bit": "1", "cmyk": "CMYK"}
        picture = picture.crop((0, 0, *{"narrow": (3, 40), "flat": (50, 2)}.get(kind, (50, 40))))
        picture = picture.convert(modes.get(kind, "RGB"))
    picture.save(folder / name, **settings)
    return folder / name


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("processor", ["ViTImageProcessor", "ViTImageProcessorFast"])
def test_training_and_captioning_see_the_pixels_of_the_pipeline(name, processor, tiny_models, tmp_path):
    folder = shutil.copytree(tiny_models / "captioner", tmp_path / "captioner")
    config = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(config | {"image_processor_type": processor}))
    path = odd_picture(name, tmp_path)
    expected = pipeline("image-to-text", model=folder, device="cpu").preprocess(str(path))["pixel_values"]
    image_processor = load_image_processor(folder)
    stored, opened = {"path": None, "bytes": path.read_bytes()}, Image.open(path)
    for value in ({"path": str(path), "bytes": None}, stored, opened):
        assert torch.equal(to_pixel_values([decode_image(value)], image_processor), expected)
    for picture in (path, opened):  # as hf_distinct.caption prepares it
        assert torch.equal(_PreparedBatches([picture], 1, image_processor, None)[0].pixel_values, expected)


@pytest.mark.parametrize(
    "call",
    [
        lambda captioner, paths: captioner(paths[0]),
        lambda captioner, paths: captioner(hf_distinct.emoji_scenes("test", 1, seed=1)["image"][0]),
        lambda captioner, paths: captioner(paths),
        lambda captioner, paths: captioner(paths, batch_size=4),
        lambda captioner, paths: list(captioner((path for path in paths), batch_size=2)),
        lambda captioner, paths: list(captioner(KeyDataset([{"image": path} for path in paths], "image"))),
        lambda captioner, paths: captioner(paths[0], max_new_tokens=3),
        lambda captioner, paths: captioner(paths[0], generate_kwargs={"num_beams": 3, "num_return_sequences": 2}),
    ],
)
def test_each_call_gives_what_the_pipeline_gives(captioner, tiny_models, paths, call: Callable):
    expected = call(pipeline("image-to-text", model=tiny_models / "captioner", device="cpu"), paths)
    found = call(captioner, paths)
    assert found == expected
    first = found[0] if isinstance(found[0], dict) else found[0][0]
    assert list(first) == ["generated_text"] and first["generated_text"]


def test_settings_of_generate_hold_for_all_calls_or_for_one(tiny_models, paths):
    short = pipeline("image-to-text", model=str(tiny_models / "captioner"), device="cpu", max_new_tokens=2)
    plain = pipeline("image-to-text", model=str(tiny_models / "captioner"), device="cpu")
    assert short(paths) == plain(paths, max_new_tokens=2) != plain(paths)
    assert short(paths, max_new_tokens=4) == plain(paths, max_new_tokens=4)
    with pytest.raises(ValueError, match="max_new_tokens"):
        plain(paths[0], max_new_tokens=3, generate_kwargs={"max_new_tokens": 4})


def test_pictures_come_by_url_too(captioner, paths, address):
    assert captioner(f"{address}/2.png", timeout=10) == captioner(paths[2])


def test_without_any_length_of_its_own_a_model_writes_up_to_that_of_transformers_4(captioner, paths, monkeypatch):
    monkeypatch.setattr("hf_distinct.inference.pipelines.MAX_NEW_TOKENS", 9)
    endless = {"suppress_tokens": [captioner.tokenizer.eos_token_id, captioner.tokenizer.pad_token_id]}
    monkeypatch.setattr(captioner.model.generation_config, "max_length", 20)
    for told, words in (({}, 9), ({"max_new_tokens": 4}, 4)):
        found = captioner(paths[0], generate_kwargs=endless, **told)[0]["generated_text"]
        assert len(captioner.tokenizer(found, add_special_tokens=False).input_ids) == words


def test_a_model_in_memory_is_taken_with_its_parts_and_half_precision_is_asked_for(tiny_models, captioner, paths):
    parts = {"tokenizer": captioner.tokenizer, "image_processor": captioner.image_processor}
    assert pipeline("image-to-text", model=captioner.model, device="cpu", **parts)(paths) == captioner(paths)
    half = pipeline("image-to-text", model=str(tiny_models / "captioner"), device="cpu", dtype=torch.bfloat16)
    assert half.model.dtype == torch.bfloat16 and len(half(paths)) == len(paths)


def test_the_shipped_captioner_computes_what_its_class_computes(paths):
    folder = hf_distinct.shipped("captioner")
    captioner = pipeline("image-to-text", model=folder, device="cpu")
    batch = {**captioner.preprocess(paths[0]), "decoder_input_ids": torch.tensor([[1, 5, 9, 30]])}
    with torch.no_grad():
        ours, plain = (m(**batch).logits for m in (captioner.model, VisionEncoderDecoderModel.from_pretrained(folder)))
    torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-5)


def test_other_tasks_are_an_error_that_says_where_to_go():
    with pytest.raises(ValueError, match="only the task 'image-to-text'; transformers.pipeline may support 'fill-"):
        pipeline("fill-mask", model="any")


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _of_another_kind(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))


def _torn(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.both_ends
@pytest.mark.parametrize(
    "damage",
    [
        _empty,
        _of_another_kind,
        _torn,
        lambda folder: (folder / "config.json").write_text("{"),
        lambda folder: (folder / "tokenizer.json").write_text("{"),
        lambda folder: (folder / "preprocessor_config.json").unlink(),
        lambda folder: shutil.rmtree(folder),
    ],
)
def test_a_captioner_that_cannot_be_loaded_is_one_line_with_its_name(tiny_models, tmp_path, damage):
    folder = Path(shutil.copytree(tiny_models / "captioner", tmp_path / "captioner"))
    damage(folder)
    for load in (load_captioner, hf_distinct.Captioner):
        with pytest.raises(ValueError, match=f"Captioner '{folder}' cannot be loaded: ") as refused:
            load(str(folder))
        assert "\n" not in str(refused.value)


def test_what_a_captioner_lacks_is_loaded_from_where_it_comes_from(tiny_models, tmp_path):
    folder = tiny_models / "captioner"
    model, tokenizer, image_processor = load_captioner(folder)
    for given in (str(folder), folder, model):
        found = as_captioner(given)
        assert [type(each) for each in found] == [type(model), type(tokenizer), type(image_processor)]
        assert found[1].get_vocab() == tokenizer.get_vocab()
        assert found[2].to_dict() == image_processor.to_dict()
    assert found[0] is model
    bare = Path(shutil.copytree(folder, tmp_path / "bare"))
    (bare / "tokenizer.json").unlink()
    for given in (bare, VisionEncoderDecoderModel.from_pretrained(bare)):
        assert as_captioner(given, tokenizer)[1] is tokenizer
        assert as_captioner(given, tokenizer, image_processor)[2] is image_processor


def test_processors_that_are_nowhere_are_one_line(tiny_models, tmp_path):
    folder = Path(shutil.copytree(tiny_models / "captioner", tmp_path / "captioner"))
    model, tokenizer, image_processor = load_captioner(folder)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=f"Pass image_processor, which '{folder}', .* does not have: ") as refused:
        as_captioner(model, tokenizer)
    assert "\n" not in str(refused.value)
    new = VisionEncoderDecoderModel(model.config.__class__(**model.config.to_dict()))
    new.config._name_or_path = ""
    with pytest.raises(ValueError, match="^Pass processing_class and image_processor: the model does not name"):
        as_captioner(new)
    with pytest.raises(ValueError, match="^Pass processing_class: the model does not name"):
        as_captioner(new, image_processor=image_processor)


def test_processors_that_bring_code_are_refused(tiny_models, tmp_path):
    folder = Path(shutil.copytree(tiny_models / "captioner", tmp_path / "captioner"))
    model, _, _ = load_captioner(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": {"AutoTokenizer": ["own.Own", None]}}))
    with pytest.raises(ValueError, match="requires custom code"):
        as_captioner(model)
