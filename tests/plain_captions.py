"""What a person runs who has a captioner and transformers, and has never heard of this package.

    python plain_captions.py MODEL PICTURE ...        # prints a JSON list of captions

transformers 5 took `pipeline("image-to-text")` away; the classes it was made of are all there.
"""

from __future__ import annotations

import json
import sys

from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, VisionEncoderDecoderModel, pipeline
from transformers.pipelines import get_supported_tasks


def captions(source: str, paths: list[str]) -> list[str]:
    """One at a time: sums over another batch may differ in their last bit."""
    if "image-to-text" in get_supported_tasks():
        captioner = pipeline("image-to-text", model=source, device="cpu")
        return [captioner(path)[0]["generated_text"].strip() for path in paths]
    model, tokenizer = VisionEncoderDecoderModel.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    processor = AutoImageProcessor.from_pretrained(source, backend="pil")
    pixels = [processor(Image.open(path).convert("RGB"), return_tensors="pt") for path in paths]
    return [tokenizer.decode(model.generate(**each)[0], skip_special_tokens=True).strip() for each in pixels]


if __name__ == "__main__":
    print(json.dumps(captions(sys.argv[1], sys.argv[2:])))  # noqa: T201
    assert not [name for name in sys.modules if name.split(".")[0] in ("hf_distinct", "open_clip")]
