"""To the Hub and back: which files go, how they get there on a bad line, and what is fetched."""

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

# What a captioner needs to be loaded. `generation_config.json` is among it: without one, the pipeline's own
# `max_new_tokens=256` runs past the positions of a short decoder.
README = "README.md"
REQUIRED_FILES = (
    README,
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer_config.json",
)
WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")
"""What `save_pretrained` calls weights; `model.fp16.safetensors`, or those in a folder of the Hub, are not ours."""
# Of every tokenizer of transformers: what its `vocab_files_names` say, and what `save_pretrained` adds.
TOKENIZER = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.json", "chat_template.jinja", "vocab.json", "vocab.txt", "vocab-src.json", "vocab-tgt.json",
    "target_vocab.json", "entity_vocab.json", "merges.txt", "dict.txt", "bpe.codes", "spiece.model", "spm.model",
    "spm_char.model", "sentencepiece.model", "sentencepiece.bpe.model", "source.spm", "target.spm", "tekken.json",
    "prophetnet.tokenizer", "normalizer.json", "byte_maps.json", "emoji.json", "word_shape.json",
    "word_pronunciation.json",
)  # fmt: skip

# Lists of what may be uploaded, not of what may not: a training leaves optimisers, pickled arguments and logs behind,
# and those hold paths and names of the machine.
MODEL_FILES = (
    *REQUIRED_FILES, *TOKENIZER,
    BESIDE, "metrics.json", "contrast.html", "contrast.png", "samples.png", "training_curve.png",
)  # fmt: skip
SCORER_FILES = ("open_clip_config.json", "open_clip_model.safetensors", "text_config.json", *TOKENIZER)

NAMED = 20
"""So many files that stay are named."""
PASSING = (408, 412, 429, 500, 502, 503, 504)
"""HTTP statuses that pass by themselves: too slow, another commit came first, too many requests, a Hub in trouble."""
WAITS = (1, 2, 4, 8, 16)
"""Seconds between one try and the next, where the connection broke or the Hub was in trouble."""


def hub_token(token: str | None = None) -> str:
    """Return the token to write to the Hub with.

    Worth calling before a long training, so that a missing token is known at its start.

    Args:
        token: The token itself; by default that of `HF_TOKEN` or of an earlier `hf auth login`.

    Raises:
        ValueError: There is none.
    """
    token = token or get_token()
    if not token:
        raise ValueError(
            "To push to the Hub a token with write access is needed, and there is none: run `hf auth login`, or set "
            "the environment variable HF_TOKEN (make one under Settings > Access Tokens on the Hub)."
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
    """Push what a recipe left behind to the Hub, at whatever endpoint `HF_ENDPOINT` names.

    Of a captioner there go up model, tokenizer, image processor, generation config, card, `metrics.json` and pictures;
    checkpoints, optimisers, pickled arguments and logs stay. Of a folder of `recipes/mine.py` (a data set) there go up
    embeddings and neighbours, in a form that another machine finds again; its sheet of pictures stays. Links that lead
    out of the folder stay, too. A line of the log names what was left out. In settings, of paths of this machine only
    the last part goes up; see `hf_distinct.text.portable`.

    It is one commit: a push that is cut off leaves the repository as it was. What the repository holds already is not
    sent again.

    Args:
        output_dir: The folder that `recipes/train.py` left behind, or for a data set `recipes/mine.py`.
        repo_id: `name` or `account/name`; made if it does not exist.
        repo_type: `"model"` for a captioner, `"dataset"` for mined neighbours.
        private: Whether nobody else may see it.
        revision: The branch to push to; made if it does not exist. None: `main`.
        include_discriminator: Whether the trained discriminator goes along.
        include_scorer: A folder with the open_clip model that gave the rewards, whose weights go along, as `scorer/`.
        token: See `hub_token`.
        commit_message: Message of the commit.

    Returns:
        The address of the repository.

    Raises:
        ValueError: A file is missing, there is no token, the card's metadata is invalid, the Hub does not let the
            token write there, or `private` is asked for and the repository exists and is public.
        ConnectionError: The Hub cannot be reached, or breaks off again and again.
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
    """The files of a captioner that may be uploaded, by their name there.

    Raises:
        ValueError: One that is needed to load it is missing.
    """
    weights = tuple(sorted(path.name for path in folder.glob("*") if WEIGHTS.fullmatch(path.name)))
    if not any(name.endswith(".safetensors") for name in weights):
        required = (*required, "model.safetensors")
    return _all_of(folder, (*MODEL_FILES, *weights), required)


def _all_of(folder: Path, names: tuple[str, ...], required: tuple[str, ...]) -> dict[str, Path]:
    """The files of a folder that are on a list, by their name; links that lead out of it are none of its files."""
    inside = folder.resolve()
    files = {name: folder / name for name in names if (folder / name).resolve().is_relative_to(inside)}
    files = {name: path for name, path in files.items() if path.is_file()}
    if missing := [name for name in required if name not in files]:
        raise ValueError(
            f"{str(folder)!r} cannot be pushed, for it lacks {', '.join(missing)}: take the folder that a recipe left "
            "behind when it was done, or save what is missing into it (the card: `hf_distinct.write_model_card`). "
            "Links that lead out of the folder do not count."
        )
    return files


def _name_what_stays(folder: Path, pushed: Collection[str]) -> None:
    stay = sorted(path.name for path in folder.iterdir() if path.name not in pushed and not path.name.startswith("."))
    if stay:
        more = f" and {len(stay) - NAMED} more" if len(stay) > NAMED else ""
        logger.info("of %s these stay here: %s%s", folder, ", ".join(map(plain, stay[:NAMED])), more)


def prepare_repo(
    repo_id: str,
    *,
    repo_type: RepoType = "model",
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Make a repository and a branch of it, where they do not exist; see `push_folder`.

    Returns:
        The whole name of the repository, `account/name`.
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
    """Upload files in one commit; those that the repository holds already are not sent.

    Weights that a push left there under names that are no longer used (shards, after a model in one file) are removed:
    whoever loads the repository would mix them up. Nothing else is, nor any file in a folder. A README that somebody
    edited there is merged with the new one; where it cannot be, it stays, and the new one goes beside it as
    `model_card.md`: see `hf_distinct.text.card_merge`.

    Args:
        files: Where each file lies, by its name in the repository.
        repo_id: `account/name`.
        repo_type: See `push_folder`.
        revision: The branch.
        token: See `hub_token`.
        commit_message: Message of the commit.

    Returns:
        The address of the repository.

    Raises:
        ValueError, ConnectionError: See `push_folder`; or a file of text holds the token.
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
        # Made anew at each try: huggingface_hub notes in them how far it came.
        additions = [CommitOperationAdd(name, content) for name, content in sent.items()]
        # huggingface_hub 0.36 finds out what has not changed, and sends it all the same.
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
    """What goes up of a new README, by its name there: nothing is lost that somebody wrote into the old one."""
    ours, theirs = new.read_text(encoding="utf-8"), old.read_text(encoding="utf-8")
    merged = merge(ours, theirs)
    if merged is not None:
        return {README: merged.encode()}
    if edited(ours):  # a person wrote the new one, too
        if edited(theirs):
            logger.warning(
                "%s: %s was edited there and is replaced by the one of this folder, which was edited too. The earlier "
                "one is in the history of the repository.", repo_id, README
            )  # fmt: skip
        return {README: ours.encode()}
    logger.warning(
        "%s: somebody edited %s there in a part that hf_distinct wrote. It stays as it is, and the new card is %s "
        "beside it. To get the new one, delete the old one there and push again.", repo_id, README, BESIDE
    )  # fmt: skip
    return {README: theirs.encode(), BESIDE: ours.encode()}


def _refuse_token(files: Mapping[str, Path | bytes], token: str) -> None:
    """Refuse to publish the very token that writes; weights, pictures and arrays hold no text of anybody's."""
    for name, content in files.items():
        if not name.endswith((".safetensors", ".png", ".npy", ".pt", ".pth")):
            text = content if isinstance(content, bytes) else content.read_bytes()
            if token.encode() in text:
                raise ValueError(f"{name} holds your Hub token, so nothing was pushed: take it out of the file.")


def _is_there(addition: CommitOperationAdd, entry: RepoFile | None) -> bool:
    """Whether the repository holds this very content under this name."""
    if entry is None or entry.size != addition.upload_info.size:
        return False
    if entry.lfs is not None:
        return entry.lfs.sha256 == addition.upload_info.sha256.hex()
    with addition.as_file() as file:
        return entry.blob_id == hashlib.sha1(b"blob %d\0" % entry.size + file.read()).hexdigest()


def pull(repo_id: str | os.PathLike[str], *, revision: str | None = None, token: str | None = None) -> Path:
    """Fetch a pushed folder of `recipes/mine.py`; what was fetched before is not fetched again.

    Args:
        repo_id: `account/name` of a data set on the Hub; or the path of a folder, which is returned as it is.
        revision: Its branch, tag or commit.
        token: To read a private one; by default that of `HF_TOKEN` or of an earlier `hf auth login`.

    Returns:
        A folder, in the cache of huggingface_hub.

    Raises:
        ValueError: There is neither such a folder nor such a repository, or the token may not read it.
        ConnectionError: The Hub cannot be reached, and nothing of it is in the cache.
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
        except LocalEntryNotFoundError as error:  # it stands before what kept huggingface_hub from the Hub
            raise error.__cause__ or error from None

    try:
        return Path(_insist(fetch, name, "read"))
    except (HFValidationError, HfHubHTTPError, OfflineModeIsEnabled) as error:
        raise ValueError(
            f"{name!r} is neither a folder nor a data set on {constants.ENDPOINT} that this token may read."
        ) from error


def _insist(action: Callable[[], Result], repo_id: str, purpose: str) -> Result:
    """Do something with the Hub, again and again where it may go better the next time.

    huggingface_hub by itself repeats downloads and the upload of a large file, but not what comes before and after it.
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
                    f"{constants.ENDPOINT} cannot be reached, or breaks off again and again ({trouble}): what "
                    f"{repo_id!r} held before stands. Try again later, with the same command."
                ) from error
            logger.warning("%s: %s; trying again in %d s", repo_id, trouble, wait)
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def _passing_trouble(error: BaseException | None) -> str | None:
    """What went wrong, if that may pass by itself: a broken connection, or a Hub in trouble; else None."""
    while error is not None and not isinstance(error, OfflineModeIsEnabled):
        response = getattr(error, "response", None)
        if response is not None:
            return f"HTTP {response.status_code}" if response.status_code in PASSING else None
        # huggingface_hub speaks by requests, from version 1 on by httpx; whichever it is tells what it met by an error
        # of its own, which others may wrap.
        if type(error).__module__.partition(".")[0] in ("requests", "httpx"):
            return " ".join(str(error).split()) or type(error).__name__
        error = error.__cause__ or error.__context__
    return None


def _explain(error: Exception, repo_id: str, purpose: str) -> None:
    """Raise an error that says what to do, where the Hub's answer means that the token does not do."""
    response = getattr(error, "response", None) if isinstance(error, HfHubHTTPError) else None
    if response is not None and response.status_code in (401, 403):
        raise ValueError(
            f"{constants.ENDPOINT} does not let this token {purpose} {repo_id!r} (HTTP {response.status_code}): check "
            f"the name, and take a token that may {purpose} it, by `hf auth login` or HF_TOKEN."
        ) from error
