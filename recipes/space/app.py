"""Show in a browser the captions before and after a training, and the pictures that a caption finds.

It needs a checkout and the packages of `pip install -e ".[space]"`:

    python recipes/space/app.py                              # the shipped captioner
    python recipes/space/app.py --after outputs/quickstart   # beside a captioner that you trained

As a Space on the Hub, the app reads its settings from settings.yaml.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from PIL import Image

from hf_distinct import Captioner, emoji_scenes
from hf_distinct.data.images import ImageError, decode_image, picture_files
from hf_distinct.runs.arguments import clear_errors, parse_settings
from hf_distinct.runs.dataset_settings import CAPTIONER_FORMS, CLIP_FORMS
from hf_distinct.scorer import ClipScorer, shipped
from hf_distinct.text.limits import MAX_CAPTION_CHARACTERS

SAMPLES = 10
FOUND, EXAMPLES = 10, 20
ROUNDING = 1e-5  # of a picture's embedding, alone or in a batch
LONGEST_SIDE = 1024  # of a gallery's pictures, in pixels
UPLOAD, WAITING = "20mb", 32  # the largest file that is taken, and the most requests that wait at a time
Picture = Image.Image


@dataclass
class Settings:
    """Which captioners to show, and the pictures that their captions have to tell apart."""

    before: str | None = field(
        default=None,
        metadata={"help": f"Captioner before the training: {CAPTIONER_FORMS}. Default: the shipped `captioner`."},
    )
    after: str | None = field(
        default=None,
        metadata={
            "help": f"Captioner after the training: {CAPTIONER_FORMS}. Default: the best of {SAMPLES} samples of the "
            "captioner before, as the CLIP chooses it."
        },
    )
    scorer: str = field(
        default="truth_scorer", metadata={"help": f"CLIP that finds pictures by captions: {CLIP_FORMS}."}
    )
    gallery: str | None = field(
        default=None, metadata={"help": "Folder of pictures to search in. Default: emoji scenes."}
    )
    size: int = field(default=200, metadata={"help": "Number of pictures to search in, at most."})


class Gallery:
    """Pictures among which CLIP searches.

    Args:
        pictures: N of them, RGB.
        scorer: the CLIP.
    """

    def __init__(self, pictures: list[Picture], scorer: ClipScorer) -> None:
        self.pictures, self.scorer = pictures, scorer
        self.embeds = torch.cat([self._embed(pictures[i : i + 64]) for i in range(0, len(pictures), 64)])

    def _embed(self, pictures: list[Picture]) -> torch.Tensor:
        return self.scorer.encode_images(torch.stack([self.scorer.transform(picture) for picture in pictures]))

    def find(self, caption: str, count: int = FOUND) -> list[tuple[Picture, str]]:
        """Find the pictures most similar to a caption, with their cosine similarities."""
        cosines = self.embeds @ self.scorer.encode_texts([caption])[0]
        best = cosines.topk(min(count, len(self.pictures)))
        return [
            (self.pictures[row], f"{cosine:.2f}")
            for row, cosine in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def place(self, picture: Picture, caption: str) -> int:
        """Rank a picture, from 1, among the gallery by its similarity to a caption; it need not be in the gallery."""
        said = self.scorer.encode_texts([caption])[0]
        own = self._embed([picture])[0] @ said
        return 1 + int((self.embeds @ said > own + ROUNDING).sum())


def pictures_of(settings: Settings) -> list[Picture]:
    """Load the pictures of the gallery; those of a folder in the order of their names, without unreadable ones."""
    if settings.gallery is None:
        return list(emoji_scenes("test_twins", settings.size)["image"])
    pictures: list[Picture] = []
    for path in picture_files(settings.gallery):
        try:
            picture = decode_image({"path": str(path), "bytes": None})
        except ImageError as error:
            print(f"A picture was left out: {error}")
            continue
        picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))  # 200 photographs as they are would take 10 GB
        pictures.append(picture)
        if len(pictures) == settings.size:
            break
    return pictures


def captioners_of(settings: Settings, scorer: ClipScorer) -> dict[str, Callable[[list[Picture]], Any]]:
    """Load the captioners, by the name above their captions."""
    before = settings.before or shipped("captioner")
    if settings.after:
        return {"Before": Captioner(before), "After": Captioner(settings.after)}
    chosen = Captioner(before, rerank_with=scorer)
    return {"Before": Captioner(before), f"Best of {SAMPLES} samples": partial(chosen, num_samples=SAMPLES)}


def build(settings: Settings) -> gr.Blocks:
    """Build the app: two captions side by side, and a search."""
    scorer = ClipScorer(settings.scorer)
    gallery = Gallery(pictures_of(settings), scorer)
    captioners = captioners_of(settings, scorer)

    def describe(picture: Picture | None) -> list[str]:
        """Write the caption of each captioner, and the rank of the picture by that caption."""
        if picture is None:
            return [""] * (2 * len(captioners))
        try:
            picture = decode_image(picture)
        except ImageError as error:
            raise gr.Error(str(error)) from error
        shown = []
        for captioner in captioners.values():
            caption = captioner([picture])[0]
            shown += [caption, f"{gallery.place(picture, caption)} of {len(gallery.pictures)}"]
        return shown

    def find(caption: str) -> list[tuple[Picture, str]]:
        """Find the pictures most similar to a caption."""
        if len(caption) > MAX_CAPTION_CHARACTERS:
            raise gr.Error(f"The caption has {len(caption)} characters; {MAX_CAPTION_CHARACTERS} are allowed.")
        return gallery.find(caption) if caption.strip() else []

    examples = gallery.pictures[:: max(1, len(gallery.pictures) // EXAMPLES)][:EXAMPLES]

    def pick(event: gr.SelectData) -> Picture:
        """Take one of the examples."""
        return examples[event.index]

    with gr.Blocks(title="Distinctive captions", analytics_enabled=False) as app:
        gr.Markdown(
            "# Distinctive captions\nA caption is distinctive if CLIP finds its picture among others by the caption."
        )
        with gr.Tab("Before and after"):
            with gr.Row():
                # PNG: what is picked below is captioned as it hangs in the gallery.
                picture = gr.Image(type="pil", image_mode=None, format="png", label="Picture", height=280)
                said: list[gr.Textbox] = []
                for name in captioners:
                    with gr.Column():
                        said.append(gr.Textbox(label=name, lines=3))
                        said.append(gr.Textbox(label="Rank of the picture when CLIP searches by this caption"))
            gr.Markdown("Upload a picture, or choose one from the gallery:")
            some = gr.Gallery(examples, show_label=False, columns=10, height=280, allow_preview=False)
            some.select(pick, None, picture)
            picture.change(describe, picture, said, api_name="describe")
        with gr.Tab("Find a picture"):
            nearest = "The most similar pictures come first, with their cosine similarities."
            caption = gr.Textbox(label="Caption", info=nearest, max_length=MAX_CAPTION_CHARACTERS)
            button = gr.Button("Find", variant="primary")
            found = gr.Gallery(show_label=False, columns=5, height="auto", object_fit="contain")
            gr.on([caption.submit, button.click], find, caption, found, api_name="find")
    return app


def main() -> None:
    """Serve the app."""
    (settings,) = parse_settings(Settings, description=__doc__, default_file=Path(__file__).with_name("settings.yaml"))
    # gradio decodes some pictures, to turn them upright, before `describe` sees them.
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    app = build(settings).queue(max_size=WAITING)
    app.launch(share=False, max_file_size=UPLOAD)


if __name__ == "__main__":
    with clear_errors():
        main()
