import re

import numpy as np
import pytest
import torch
from datasets import Image
from PIL import Image as PILImage
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast, ViTImageProcessor, ViTImageProcessorFast

from hf_distinct.data import stable_hash
from hf_distinct.data.collator import CaptionCollator
from hf_distinct.data.embeddings import embed_dataset
from hf_distinct.data.mining import mine_neighbours

WORDS = ["<end>", "<unk>", "a", "red", "blue", "cat", "dog", "and", "."]
END = 0


@pytest.fixture(scope="module")
def tokenizer():
    words = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", unk_token="<unk>", pad_token="<end>")


@pytest.fixture(scope="module")
def image_processor():
    return ViTImageProcessor(size={"height": 8, "width": 8})


def row(image_id="7", captions=("a red cat",), **more):
    image = PILImage.new("RGB", (5, 5), (255, 0, 0))
    return {"image": image, "captions": list(captions), "image_id": image_id, **more}


def test_labels_by_hand(tokenizer, image_processor):
    collator = CaptionCollator(tokenizer, image_processor, max_length=4)
    batch = collator([row(captions=["a red cat"]), row("8", ["dog"]), row("9", ["a red cat and a blue dog"])])
    # "a red cat" = 2 3 5, and the end 0; the long one is cut to three words, and keeps its end.
    assert batch["labels"].tolist() == [[[2, 3, 5, END]], [[6, END, -100, -100]], [[2, 3, 5, END]]]
    assert batch["labels"].dtype == torch.int64
    assert batch["captions"] == [["a red cat"], ["dog"], ["a red cat and a blue dog"]]
    assert batch["image_ids"].tolist() == [stable_hash("7"), stable_hash("8"), stable_hash("9")]
    assert batch["columns"] == {"image_id": ["7", "8", "9"]}
    assert not {"image_embeds", "caption_embeds", "neighbour_embeds"} & set(batch)


def test_an_end_token_within_the_text_does_not_count(tokenizer, image_processor):
    batch = CaptionCollator(tokenizer, image_processor)([row(captions=["a <end> cat <end>"])])
    assert batch["labels"].tolist() == [[[2, 5, END]]]


def test_a_caption_of_unusual_words_only_still_ends(tokenizer, image_processor):
    batch = CaptionCollator(tokenizer, image_processor)([row(captions=["<end>"])])
    assert batch["labels"].tolist() == [[[END]]]


@pytest.mark.parametrize("processor", [ViTImageProcessor, ViTImageProcessorFast])
@pytest.mark.parametrize("size", [(1, 9), (2, 2), (3, 9), (9, 2), (4, 4)])
def test_tiny_pictures_are_seen_as_the_image_processor_sees_them(processor, size, tokenizer):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image, image_processor = PILImage.fromarray(pixels), processor(size={"height": 8, "width": 8})
    found = CaptionCollator(tokenizer, image_processor)([row() | {"image": image}])["pixel_values"]
    assert found.shape == (1, 3, 8, 8) and found.dtype == torch.float32
    assert torch.equal(found, image_processor(images=image, return_tensors="pt")["pixel_values"])


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P", "I;16"])
def test_modes(mode, tokenizer, image_processor):
    collator = CaptionCollator(tokenizer, image_processor)
    assert collator([row() | {"image": PILImage.new(mode, (5, 4))}])["pixel_values"].shape == (1, 3, 8, 8)


def test_draw_without_replacement_by_the_global_generator(tokenizer, image_processor):
    captions = ["a", "red", "blue", "cat", "dog"]
    collator = CaptionCollator(tokenizer, image_processor, captions_per_image=3)
    torch.manual_seed(5)
    first = [collator([row(captions=captions)])["captions"][0] for _ in range(30)]
    torch.manual_seed(5)
    second = [collator([row(captions=captions)])["captions"][0] for _ in range(30)]
    assert first == second
    assert all(len(set(drawn)) == 3 for drawn in first)
    assert {text for drawn in first for text in drawn} == set(captions)
    assert len({tuple(drawn) for drawn in first}) > 10


def test_fewer_captions_than_asked_for_are_repeated(tokenizer, image_processor):
    collator = CaptionCollator(tokenizer, image_processor, captions_per_image=5)
    batch = collator([row(captions=["cat", "dog"])])
    # Two full rounds and one more: each two or three times.
    assert sorted(batch["captions"][0].count(text) for text in ("cat", "dog")) == [2, 3]
    assert batch["references"] == [["cat", "dog"]]
    assert batch["labels"].shape == (1, 5, 2)


def test_with_an_epoch_the_draw_depends_on_nothing_else(tokenizer, image_processor):
    rows = [row(str(number), ["a", "red", "blue", "cat", "dog"]) for number in range(20)]

    def draw(rows, **settings):
        collator = CaptionCollator(tokenizer, image_processor, **settings)
        return [captions[0] for captions in collator(rows)["captions"]]

    torch.manual_seed(0)
    state = torch.get_rng_state()
    drawn = draw(rows, epoch=2)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert draw(rows[::-1], epoch=2) == drawn[::-1]
    assert draw(rows, epoch=3) != drawn
    assert draw(rows, epoch=2, seed=1) != drawn
    assert len(set(drawn)) > 1


def test_workers_that_live_on_see_the_epoch_change(tokenizer, image_processor):
    captions = ["a", "red", "blue", "cat", "dog", "and"]
    rows = [row(str(number), captions) for number in range(8)]
    collator = CaptionCollator(tokenizer, image_processor, epoch=0)
    loader = torch.utils.data.DataLoader(
        rows, batch_size=4, collate_fn=collator, num_workers=1, persistent_workers=True
    )
    drawn = []
    for epoch in range(3):
        collator.epoch = epoch
        drawn.append([texts for batch in loader for texts in batch["captions"]])
    here = []
    for epoch in range(3):
        collator.epoch = epoch
        here.append(collator(rows)["captions"])
    assert drawn == here and drawn[0] != drawn[1] != drawn[2]
    collator.epoch = None
    assert collator.epoch is None and CaptionCollator(tokenizer, image_processor).epoch is None


@pytest.fixture
def embedded(picture, rows_to_dataset, scorer):
    captions = [["a cat", "a red cat"], ["a dog"], ["a blue dog", "a dog", "a cat"], ["red"]]
    rows = [(picture(f"{i}.png", seed=i), each, f"id{i}") for i, each in enumerate(captions)]
    dataset, embeddings = embed_dataset(rows_to_dataset(rows), scorer)
    # Row 3 gets one neighbour, the others two.
    dataset = dataset.add_column("neighbours", [[1, 2], [0, 3], [3, 0], [2]])
    return dataset.add_column("mood", ["glad", "sad", "glad", "sad"]), embeddings


def test_embeddings_and_neighbours(embedded, tokenizer, image_processor):
    dataset, embeddings = embedded
    collator = CaptionCollator(tokenizer, image_processor, embeddings, list(dataset["image_id"]), captions_per_image=2)
    batch = collator([dataset[place] for place in (3, 0, 2)])
    assert torch.equal(batch["image_embeds"], embeddings.image_embeds[[3, 0, 2]])
    assert batch["neighbour_mask"].tolist() == [[True, False], [True, True], [True, True]]
    ids = [stable_hash(f"id{number}") for number in range(4)]
    assert batch["neighbour_ids"].tolist() == [[ids[2], 0], [ids[1], ids[2]], [ids[3], ids[0]]]
    assert torch.equal(batch["neighbour_embeds"][1], embeddings.image_embeds[[1, 2]])
    assert torch.equal(batch["neighbour_embeds"][0, 1], torch.zeros(16))
    assert batch["columns"] == {"image_id": ["id3", "id0", "id2"], "mood": ["sad", "glad", "glad"]}
    for place, source in enumerate((3, 0, 2)):
        texts, embeds = dataset[source]["captions"], embeddings.captions_of(source)
        for drawn, text in enumerate(batch["captions"][place]):
            assert torch.equal(batch["caption_embeds"][place, drawn], embeds[texts.index(text)])


def test_no_neighbours_give_a_width_of_zero(embedded, tokenizer, image_processor):
    dataset, embeddings = embedded
    collator = CaptionCollator(tokenizer, image_processor, embeddings, list(dataset["image_id"]))
    batch = collator([dataset.remove_columns("neighbours")[place] for place in (0, 1)])
    assert batch["neighbour_embeds"].shape == (2, 0, 16)
    assert batch["neighbour_ids"].shape == batch["neighbour_mask"].shape == (2, 0)
    assert batch["neighbour_mask"].dtype == torch.bool


def test_mined_data_goes_through_a_data_loader(embedded, tokenizer, image_processor):
    dataset, embeddings = embedded
    mined = mine_neighbours(dataset, embeddings.image_embeds, max_similarity=1.0)
    collator = CaptionCollator(tokenizer, image_processor, embeddings, list(mined["image_id"]))
    batches = list(torch.utils.data.DataLoader(mined, batch_size=3, collate_fn=collator, num_workers=1))
    assert [len(batch["labels"]) for batch in batches] == [3, 1]
    assert batches[0]["neighbour_embeds"].shape == (3, 2, 16)
    own = batches[0]["image_ids"][:, None]
    assert (batches[0]["neighbour_ids"] != own).all()


def test_undecodable_image_is_left_out_by_its_name(embedded, tokenizer, image_processor, tmp_path, caplog):
    dataset, _ = embedded
    (tmp_path / "1.png").write_text("no picture")
    encoded = dataset.cast_column("image", Image(decode=False))
    collator = CaptionCollator(tokenizer, image_processor)
    assert collator([encoded[0]])["pixel_values"].shape == (1, 3, 8, 8)
    batch = collator([encoded[0], encoded[1], encoded[2]])
    assert batch["columns"]["image_id"] == ["id0", "id2"]
    assert len(batch["pixel_values"]) == len(batch["labels"]) == len(batch["references"]) == 2
    assert re.search(r"Image 'id1': image .*1\.png.* cannot be decoded.*left out of its batch", caplog.text)
    with pytest.raises(ValueError, match=r"No image of a batch of 1 can be decoded. Image 'id1': image .*1\.png"):
        collator([encoded[1]])


def test_settings_that_cannot_work(embedded, tokenizer, image_processor):
    dataset, embeddings = embedded
    with pytest.raises(ValueError, match="captions_per_image=0"):
        CaptionCollator(tokenizer, image_processor, captions_per_image=0)
    with pytest.raises(ValueError, match="max_length=1"):
        CaptionCollator(tokenizer, image_processor, max_length=1)
    with pytest.raises(ValueError, match="2 image_ids do not fit 4 embedded images"):
        CaptionCollator(tokenizer, image_processor, embeddings, ["id0", "id1"])
    endless = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, unk_token="<unk>")
    with pytest.raises(ValueError, match="no end token"):
        CaptionCollator(endless, image_processor)


def test_rows_that_do_not_fit(embedded, tokenizer, image_processor):
    dataset, embeddings = embedded
    collator = CaptionCollator(tokenizer, image_processor, embeddings, list(dataset["image_id"]))
    good = dataset[0]
    for wrong, message in [
        ({key: value for key, value in good.items() if key != "captions"}, "lacks .'captions'.*remove_unused_columns"),
        ({key: value for key, value in good.items() if key != "row"}, "lacks .'row'"),
        (good | {"captions": []}, "Image 'id0' has no captions"),
        (good | {"row": 1}, "Row 1 of the embeddings is not image 'id0'"),
        (good | {"row": 4}, "Row 4 of the embeddings is not image 'id0'"),
        (good | {"captions": ["a"]}, "Image 'id0' has 1 captions, but its embeddings"),
        (good | {"neighbours": [4]}, "neighbour is row 4, but only 4 rows"),
    ]:
        with pytest.raises(ValueError, match=message):
            collator([wrong])
