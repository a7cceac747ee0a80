"""What the whole card of a captioner looks like, line by line; figures and names are free where a training differs."""

import re

NUMBER = r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?"
CELL = r"(?:-|-?\d+(?:\.\d{3})?)"

MODEL_CARD_PATTERN = re.compile(
    rf"""---
(?:base_model: \S+
)?(?:datasets:
- \S+
)?library_name: transformers
(?:license: \S+
)?pipeline_tag: image-to-text
tags:
- image-captioning
- vision-encoder-decoder
- reinforcement-learning
- hf_distinct
(?:co2_eq_emissions:
  emissions: {NUMBER}
  source: (?:measured by CodeCarbon|reported by its author)
)?model-index:
- name: [^\n]+
  results:
  - task:
      type: image-to-text
    dataset:
      name: [^\n]+
      type: [a-z0-9-]+
    metrics:
(?:    - type: '?[\w/@-]+'?
      value: {NUMBER}
      name: '?[\w/@-]+'?
)+---

<!-- Written by hf_distinct, replaced by the next card\. Write your own text at the end\. (?:[0-9a-f]{{12}} ){{2}}-->
# [^\n]+

An image captioner trained to write distinctive captions, which tell their image apart from similar ones\.
It was trained by CLIP-guided reinforcement learning with `hf_distinct`, after
\[Distinctive Image Captioning: Leveraging Ground Truth Captions in CLIP Guided Reinforcement
Learning\]\(https://arxiv\.org/abs/2402\.13936\) \(Chaffin, Kijak and Claveau, 2024\)\.

\| \| \|
\|---\|---\|
\| Started from \| [^|\n]+ \|
\| Trained on \| [^|\n]+ \|
\| Licence of the data \| [^|\n]+ \|
\| Scorer \(gives the reward\) \| [\w:/ -]+ \(fingerprint [0-9a-f]{{16}}\) \|

## Use

```python
from transformers import pipeline  \# on transformers 5: from hf_distinct import pipeline

captioner = pipeline\("image-to-text", model="\.\.\."\)  \# the id of this repository, or a local folder
```

`captioner\("picture\.png"\)` then returns the caption\. You can also pass a URL or a `PIL\.Image`\.

## Results

\|  \| before \| after \| people (?:\| ceiling )?\|
\| --- (?:\| ---: )+\|
(?:\| [\w/@-]+ (?:\| {CELL} )+\|
)+
- `before`: the captioner before training
- `after`: this model
- `people`: captions that people wrote, each compared with the other captions of its image
(?:- `ceiling`: captions that state every fact correctly
)?(?:- `[\w/@-]+`: [^\n]+
)+
## Samples

The pictures are spread evenly over the gallery; nobody selected them\.

!\[Numbered pictures\]\(samples\.png\)

\|  \| before \| after \| a person \|
\| --- \| --- \| --- \| --- \|
(?:\| \d+ \| [^|\n]* \| [^|\n]* \| [^|\n]+ \|
)+
\[contrast\.png\]\(contrast\.png\) shows each one beside the pictures most similar to it\.

## Reward

```text
R\(c\) = \(1 - {NUMBER}\) \[{NUMBER} \w+\(c\)(?: \+ {NUMBER} \w+\(c\))*\] \+ {NUMBER} D\(c\)
L    = - mean\(A\(c\) l\(c\)\)(?: - {NUMBER} mean\(w\(g\) l\(g\)\))?(?: \+ {NUMBER} KL)?
```

Under the CLIP [\w:/ -]+ \(fingerprint [0-9a-f]{{16}}\):

(?:- (?:`\w+`|D|A|l|g|KL): [^\n]+\.
)+
## Training

!\[Training curve: logged values by step\]\(training_curve\.png\)

Settings that differ from their defaults:

\| setting \| value \|
\|---\|---\|
(?:\| `\w+` \| [^|\n]+ \|
)+
## Limits

(?:- [^\n]+
)+(?:
## Carbon

{NUMBER} g of CO2 equivalents, (?:measured by CodeCarbon|reported by its author)\.
)?
## Versions

hf_distinct [\w.]+, transformers [\w.]+, torch [\w.+]+, open_clip_torch [\w.]+, datasets [\w.]+

## Citation

```bibtex
@article{{chaffin2024distinctive,
  title   = [^\n]+,
  author  = {{Chaffin, Antoine and Kijak, Ewa and Claveau, Vincent}},
  journal = {{arXiv preprint arXiv:2402\.13936}},
  year    = \{{2024\}}
}}
```
<!-- End of what hf_distinct wrote\. -->
"""
)
