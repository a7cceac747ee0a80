"""Upload to and download from the Hub: choose the files, and retry on a bad connection."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.hf_api import RepoFile
from transformers.utils import logging

from hf_distinct.discriminator import FILE as DISCRIMINATOR
from hf_distinct.text.card_merge import BESIDE, edited, merge
from hf_distinct.text.escaping import plain
from hf_distinct.text.portable import portable_file

logger = logging.get_logger(__name__)

RepoType = Literal["model", "dataset"]
Result = TypeVar("Result")

# The files that loading a captioner needs. Without `generation_config.json`, the pipeline's default
# `max_new_tokens=256` would exceed the positions of a short decoder.
README = "README.md"
REQUIRED_FILES = (
    README,
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer_config.json",
)
WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")
"""File names of weights from `save_pretrained`; others, such as `model.fp16.safetensors`, are not ours."""
# For every tokenizer of transformers: the names in `vocab_files_names`, and what `save_pretrained` adds.
TOKENIZER = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.json", "chat_template.jinja", "vocab.json", "vocab.txt", "vocab-src.json", "vocab-tgt.json",
    "target_vocab.json", "entity_vocab.json", "merges.txt", "dict.txt", "bpe.codes", "spiece.model", "spm.model",
    "spm_char.model", "sentencepiece.model", "sentencepiece.bpe.model", "source.spm", "target.spm", "tekken.json",
    "prophetnet.tokenizer", "normalizer.json", "byte_maps.json", "emoji.json", "word_shape.json",
    "word_pronunciation.json",
)  # fmt: skip

# Lists of allowed files, not of forbidden ones: training also writes optimisers, pickled arguments and logs, which
# contain local paths and names.
MODEL_FILES = (
    *REQUIRED_FILES, *TOKENIZER,
    BESIDE, "metrics.json", "contrast.html", "contrast.png", "samples.png", "training_curve.png",
)  # fmt: skip
SCORER_FILES = ("open_clip_config.json", "open_clip_model.safetensors", "text_config.json", *TOKENIZER)

NAMED = 20
"""Maximum number of files named that are not pushed."""
PASSING = (408, 412, 429, 500, 502, 503, 504)
"""HTTP statuses worth a retry: timeout, a concurrent commit, too many requests, a server error."""
WAITS = (1, 2, 4, 8, 16)
"""Seconds between retries after a connection or server error."""


def hub_token(token: str | None = None) -> str:
    """Return the token for pushing to the Hub.

    Call this before a long training, so that a missing token is reported early.

    Args:
        token: the token itself; by default from `HF_TOKEN` or an earlier `hf auth login`.

    Raises:
        ValueError: there is no token.
    """
    token = token or get_token()
    if not token:
        raise ValueError(
            "Pushing to the Hub needs a token with write access, and there is none: run `hf auth login`, or set the "
            "environment variable HF_TOKEN (create a token under Settings > Access Tokens on the Hub)."
        )
    return token


def push_folder(
    output_dir: str | os.PathLike[str],
    repo_id: str,
    *,
    repo_type: RepoType = "model",
    private: bool = False,
    revision: str | None = None,
    include_discriminator: bool = False,
    include_scorer: str | os.PathLike[str] | None = None,
    token: str | None = None,
    commit_message: str = "Upload by hf_distinct",
) -> str:
    """Push the output of a training or of `hf-distinct mine` to the Hub, or to the endpoint in `HF_ENDPOINT`.

    For a captioner, the push contains model, tokenizer, image processor, generation config, card, `metrics.json` and
    images, but not checkpoints, optimisers, pickled arguments or logs. For an output folder of `hf-distinct mine` (a
    dataset), it contains embeddings and neighbours in a portable form, but not the sheet of images. Links to files
    outside of the folder are left out. The log names the files that were left out. Local paths in settings are reduced
    to their last part; see `hf_distinct.text.portable`.

    A push is a single commit, so an interrupted push leaves the repository unchanged. Files that the repository
    already has are not sent again.

    Args:
        output_dir: the output folder of `hf-distinct train`, or for a dataset of `hf-distinct mine`.
        repo_id: `name` or `account/name`; created if it does not exist.
        repo_type: `"model"` for a captioner, `"dataset"` for mined neighbours.
        private: create a private repository.
        revision: the branch to push to; created if it does not exist. By default `main`.
        include_discriminator: also push the trained discriminator.
        include_scorer: a folder with the open_clip model that gave the rewards; it is pushed as `scorer/`.
        token: see `hub_token`.
        commit_message: message of the commit.

    Returns:
        The URL of the repository.

    Raises:
        ValueError: a file is missing, there is no token, the card's metadata are invalid, the token may not write
            there, or `private` is set but the repository exists and is public.
        ConnectionError: the Hub cannot be reached, or keeps failing.
    """
    folder = Path(output_dir)
    if repo_type == "dataset":
        from hf_distinct.data.mined import write_portable

        with TemporaryDirectory(prefix=".push-", dir=folder if folder.is_dir() else None) as staged:
            write_portable(folder, Path(staged))
            files = {path.relative_to(staged).as_posix(): path for path in Path(staged).rglob("*") if path.is_file()}
            _name_what_stays(folder, {path.parts[0] for path in map(Path, files)})
            repo = prepare_repo(repo_id, repo_type=repo_type, private=private, revision=revision, token=token)
            return commit_files(
                files, repo, repo_type=repo_type, revision=revision, token=token, commit_message=commit_message
            )
    files = model_files(folder)
    if include_discriminator:
        files |= _all_of(folder, (DISCRIMINATOR,), (DISCRIMINATOR,))
    _name_what_stays(folder, files)
    if include_scorer is not None:
        scorer = _all_of(Path(include_scorer), SCORER_FILES, SCORER_FILES[:2])
        _name_what_stays(Path(include_scorer), scorer)
        files |= {f"scorer/{name}": path for name, path in scorer.items()}
    repo = prepare_repo(repo_id, private=private, revision=revision, token=token)
    return commit_files(files, repo, revision=revision, token=token, commit_message=commit_message)


def model_files(folder: Path, required: tuple[str, ...] = REQUIRED_FILES) -> dict[str, Path]:
    """Return the files of a captioner that may be uploaded, by their name in the repository.

    Raises:
        ValueError: a file that loading needs is missing.
    """
    weights = tuple(sorted(path.name for path in folder.glob("*") if WEIGHTS.fullmatch(path.name)))
    if not any(name.endswith(".safetensors") for name in weights):
        required = (*required, "model.safetensors")
    return _all_of(folder, (*MODEL_FILES, *weights), required)


def _all_of(folder: Path, names: tuple[str, ...], required: tuple[str, ...]) -> dict[str, Path]:
    """Return the existing files among ``names``; links to files outside of the folder are ignored."""
    inside = folder.resolve()
    files = {name: folder / name for name in names if (folder / name).resolve().is_relative_to(inside)}
    files = {name: path for name, path in files.items() if path.is_file()}
    if missing := [name for name in required if name not in files]:
        raise ValueError(
            f"{str(folder)!r} cannot be pushed, because it lacks {', '.join(missing)}: use the output folder of a "
            "finished training, or save the missing files into it (the card: `hf_distinct.write_model_card`). "
            "Links to files outside of the folder are ignored."
        )
    return files


def _name_what_stays(folder: Path, pushed: Collection[str]) -> None:
    stay = sorted(path.name for path in folder.iterdir() if path.name not in pushed and not path.name.startswith("."))
    if stay:
        more = f" and {len(stay) - NAMED} more" if len(stay) > NAMED else ""
        logger.info("not pushed from %s: %s%s", folder, ", ".join(map(plain, stay[:NAMED])), more)


def prepare_repo(
    repo_id: str,
    *,
    repo_type: RepoType = "model",
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Create a repository and a branch, if they do not exist; see `push_folder`.

    Returns:
        The full name of the repository, `account/name`.
    """
    api = HfApi(token=hub_token(token))

    def prepare() -> str:
        name = api.create_repo(repo_id, repo_type=repo_type, private=private or None, exist_ok=True).repo_id
        if private and not api.repo_info(name, repo_type=repo_type).private:
            raise ValueError(
                f"{name!r} exists and is public, so nothing was pushed: make it private in its settings, or choose "
                "another name."
            )
        if revision is not None:
            api.create_branch(name, branch=revision, repo_type=repo_type, exist_ok=True)
        return name

    return _insist(prepare, repo_id, "write to")


def commit_files(
    files: Mapping[str, Path],
    repo_id: str,
    *,
    repo_type: RepoType = "model",
    revision: str | None = None,
    token: str | None = None,
    commit_message: str = "Upload by hf_distinct",
) -> str:
    """Upload files in a single commit; those that the repository already has are not sent.

    Weights from earlier pushes under names that are no longer used (such as shards) are removed, because loading could
    mix them up. Other files are not removed, and neither are files in folders. A README that somebody edited on the
    Hub is merged with the new one. If that is not possible, it is kept, and the new one is uploaded as
    `model_card.md`: see `hf_distinct.text.card_merge`.

    Args:
        files: local path of each file, by its name in the repository.
        repo_id: `account/name`.
        repo_type: see `push_folder`.
        revision: the branch.
        token: see `hub_token`.
        commit_message: message of the commit.

    Returns:
        The URL of the repository.

    Raises:
        ValueError, ConnectionError: see `push_folder`; also if a text file contains the token.
    """
    api = HfApi(token=hub_token(token))
    ready: dict[str, Path | bytes] = {name: portable_file(path) or path for name, path in files.items()}
    _refuse_token(ready, hub_token(token))

    def commit() -> None:
        tree = api.list_repo_tree(repo_id, recursive=True, repo_type=repo_type, revision=revision)
        there = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
        sent = dict(ready)
        card = files.get(README)
        if card and README in there and not _is_there(CommitOperationAdd(README, card), there[README]):
            with TemporaryDirectory() as cache:
                old = api.hf_hub_download(repo_id, README, repo_type=repo_type, revision=revision, cache_dir=cache)
                sent |= _beside_edits(card, Path(old), repo_id)
        # New objects for each try, because huggingface_hub stores its progress in them.
        additions = [CommitOperationAdd(name, content) for name, content in sent.items()]
        # huggingface_hub 0.36 detects unchanged files but sends them anyway.
        changed = [each for each in additions if not _is_there(each, there.get(each.path_in_repo))]
        stale = []
        if any(map(WEIGHTS.fullmatch, files)):
            stale = [CommitOperationDelete(name) for name in there if name not in files and WEIGHTS.fullmatch(name)]
        if changed or stale:
            api.create_commit(
                repo_id, [*changed, *stale],
                repo_type=repo_type, revision=revision, commit_message=commit_message,
            )  # fmt: skip

    _insist(commit, repo_id, "write to")
    address = f"{constants.ENDPOINT}/{'datasets/' if repo_type == 'dataset' else ''}{repo_id}"
    logger.info("pushed to %s", address)
    return address


def _beside_edits(new: Path, old: Path, repo_id: str) -> dict[str, bytes]:
    """Return what to upload for a new README, by file name, so that nobody's edits are lost."""
    ours, theirs = new.read_text(encoding="utf-8"), old.read_text(encoding="utf-8")
    merged = merge(ours, theirs)
    if merged is not None:
        return {README: merged.encode()}
    if edited(ours):  # a person also wrote the new one
        if edited(theirs):
            logger.warning(
                "%s: %s was edited there and is replaced by the one of this folder, which was edited too. The earlier "
                "one is in the history of the repository.", repo_id, README
            )  # fmt: skip
        return {README: ours.encode()}
    logger.warning(
        "%s: somebody edited the generated part of %s there, so it is kept, and the new card is uploaded as %s. To "
        "replace the old card, delete it there and push again.", repo_id, README, BESIDE
    )  # fmt: skip
    return {README: theirs.encode(), BESIDE: ours.encode()}


def _refuse_token(files: Mapping[str, Path | bytes], token: str) -> None:
    """Refuse to publish the Hub token itself. Weights, images and arrays are not searched."""
    for name, content in files.items():
        if not name.endswith((".safetensors", ".png", ".npy", ".pt", ".pth")):
            text = content if isinstance(content, bytes) else content.read_bytes()
            if token.encode() in text:
                raise ValueError(f"{name} contains your Hub token, so nothing was pushed: remove it from the file.")


def _is_there(addition: CommitOperationAdd, entry: RepoFile | None) -> bool:
    """Whether the repository already has this content under this name."""
    if entry is None or entry.size != addition.upload_info.size:
        return False
    if entry.lfs is not None:
        return entry.lfs.sha256 == addition.upload_info.sha256.hex()
    with addition.as_file() as file:
        return entry.blob_id == hashlib.sha1(b"blob %d\0" % entry.size + file.read()).hexdigest()


def pull(repo_id: str | os.PathLike[str], *, revision: str | None = None, token: str | None = None) -> Path:
    """Download a pushed output folder of `hf-distinct mine`; files in the cache are not downloaded again.

    Args:
        repo_id: `account/name` of a dataset on the Hub; or the path of a folder, which is returned unchanged.
        revision: its branch, tag or commit.
        token: token to read a private repository; by default from `HF_TOKEN` or an earlier `hf auth login`.

    Returns:
        A folder in the cache of huggingface_hub.

    Raises:
        ValueError: there is no such folder or repository, or the token may not read it.
        ConnectionError: the Hub cannot be reached, and the dataset is not in the cache.
    """
    if Path(repo_id).is_dir():
        return Path(repo_id)
    from hf_distinct.data.mined import PORTABLE_FILES

    name = os.fspath(repo_id)

    def fetch() -> str:
        try:
            return snapshot_download(
                name, repo_type="dataset", revision=revision, token=token, allow_patterns=list(PORTABLE_FILES)
            )
        except LocalEntryNotFoundError as error:  # it hides why huggingface_hub could not reach the Hub
            raise error.__cause__ or error from None

    try:
        return Path(_insist(fetch, name, "read"))
    except (HFValidationError, HfHubHTTPError, OfflineModeIsEnabled) as error:
        raise ValueError(
            f"{name!r} is neither a folder nor a dataset on {constants.ENDPOINT} that this token may read."
        ) from error


def _insist(action: Callable[[], Result], repo_id: str, purpose: str) -> Result:
    """Call a function that uses the Hub, and retry after temporary errors.

    huggingface_hub retries downloads and the upload of large files, but not the requests before and after them.
    """
    for wait in (*WAITS, None):
        try:
            return action()
        except Exception as error:
            trouble = _passing_trouble(error)
            if trouble is None:
                _explain(error, repo_id, purpose)
                raise
            if wait is None:
                raise ConnectionError(
                    f"{constants.ENDPOINT} cannot be reached, or keeps failing ({trouble}). {repo_id!r} is unchanged. "
                    "Run the same command again later."
                ) from error
            logger.warning("%s: %s; trying again in %d s", repo_id, trouble, wait)
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def _passing_trouble(error: BaseException | None) -> str | None:
    """Describe an error that may be temporary (a broken connection, a server error); None for other errors."""
    while error is not None and not isinstance(error, OfflineModeIsEnabled):
        response = getattr(error, "response", None)
        if response is not None:
            return f"HTTP {response.status_code}" if response.status_code in PASSING else None
        # huggingface_hub uses requests, from version 1 on httpx. Both have their own errors, which others may wrap.
        if type(error).__module__.partition(".")[0] in ("requests", "httpx"):
            return " ".join(str(error).split()) or type(error).__name__
        error = error.__cause__ or error.__context__
    return None


def _explain(error: Exception, repo_id: str, purpose: str) -> None:
    """Raise an error that says what to do, if the Hub rejects the token."""
    response = getattr(error, "response", None) if isinstance(error, HfHubHTTPError) else None
    if response is not None and response.status_code in (401, 403):
        raise ValueError(
            f"{constants.ENDPOINT} does not let this token {purpose} {repo_id!r} (HTTP {response.status_code}): check "
            f"the name, and use a token that may {purpose} it, by `hf auth login` or HF_TOKEN."
        ) from error
