"""Publishing a run: `lascl-publish RUN --hub_model_id org/name`, and `train.py --push_to_hub --hub_model_id org/name`.

With `--space org/demo` a Space follows, where `main` is tried in the browser.

Each fold is a complete model repository on a branch `fold-K`, and `main` holds the same as one of them. It is put
together in `RUN/.hub/fold-K`: the checkpoint with its card, `predictions.csv` and `metrics.json`.

What the Hub has already is compared by content, so publishing again only adds what is missing. What LaSCL did not write
stays, see `lascl.hub.ownership`. The token is the one of huggingface_hub (`hf auth login`, or HF_TOKEN).
"""

from __future__ import annotations

import json
import logging
import shlex
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import yaml
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelInfo,
    SpaceInfo,
    get_token,
    set_client_factory,
)
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import (
    build_hf_headers,
    disable_progress_bars,
    enable_progress_bars,
    get_session,
    hf_raise_for_status,
)
from huggingface_hub.utils._http import default_client_factory

from lascl.console import unless_pipe_closes
from lascl.hub.card import FIGURES, fold_card, public_config
from lascl.hub.ownership import CARD, RECORD, Record, hashes, is_lascl_config, merged_card
from lascl.hub.space import SDK, check_index_url, stage_space
from lascl.modeling_lascl import save_text_encoder
from lascl.options import HUB_MAIN, publish_options
from lascl.training.recipe import FULL_DATA, Recipe, check_repo_id
from lascl.training.run_directory import link_or_copy, write_text


# The HTTP client that huggingface_hub uses, whose errors come through: httpx, and httpx2 from its version 2 on, with
# the same names. Its own error tells which one it is.
httpx = sys.modules[HfHubHTTPError.__bases__[0].__module__.partition(".")[0]]
# huggingface_hub's own clients wait for ever. It repeats most requests by itself, five times within half a minute.
TIME_OUT = httpx.Timeout(60, connect=10)  # seconds without a byte
PATIENCE_S = 300  # from the first failure of a branch on: so long is it tried again
FIRST_WAIT_S, LONGEST_WAIT_S = 2, 60
PASSING = (408, 409, 412, 429)  # and all from 500 on: the same request may succeed later


# What an Inference Endpoint runs, and installs for it beside the torch that it has.
HANDLER = Path(__file__).with_name("handler.py")
HANDLER_REQUIREMENTS = ("transformers>=4.57,<6", "soundfile>=0.12", "soxr>=0.5")


class PublishingError(RuntimeError):
    """Something was not published. The message is one sentence that says what and why; it never holds the token."""


class NotOurs(ValueError):
    """A repository holds what LaSCL did not write, where it would write. The message says what, and how to go on."""


@unless_pipe_closes
def main(argv: list[str] | None = None):
    """Publishes a run. Exits with code 1 and one sentence when something was not published, with 2 when RUN or an
    option is wrong."""
    args = publish_options(argv)
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        publish(
            args.run,
            args.hub_model_id,
            args.folds,
            private=args.hub_private_repo,
            hub_main=args.hub_main,
            publish_text_encoder=args.publish_text_encoder,
            space=args.space,
            torch_index_url=args.torch_index_url,
            replace=args.replace,
        )
    except PublishingError as error:
        print(f"lascl-publish: {error} Give the same command again: what is there is kept.", file=sys.stderr)
        sys.exit(1)
    except (ValueError, OSError) as error:
        print(f"lascl-publish: {error}", file=sys.stderr)
        sys.exit(2)


def publish(
    run_dir: str | Path,
    repo_id: str,
    folds: list[int] | None = None,
    *,
    private: bool | None = None,
    hub_main: str | None = None,
    publish_text_encoder: bool = False,
    space: str | None = None,
    torch_index_url: str | None = None,
    replace: bool = False,
) -> list[str]:
    """Publishes finished folds, each in one commit to its branch `fold-K`, then `main`, if the run is finished, then
    the Space, if one is wanted and there is a `main` for it.

    The first branch that fails ends it: the others would fail likewise. Sets the time-out of huggingface_hub's client
    for this process.

    Args:
        run_dir: a run directory.
        repo_id: `org/name`; made if it does not exist.
        folds: numbers of finished folds; by default all of them.
        private: of a repository or Space that is made now.
        hub_main: `first_fold`, `best_validation` or `full_data`: what `main` holds, see `fold_for_main`.
        publish_text_encoder: with `text_encoder/`, so that new labels need nothing from elsewhere.
        space: `org/name` of a Space for `main`; made if it does not exist.
        torch_index_url: for the Space, see `lascl.hub.space.requirements`.
        replace: write over files of the same names that are another model's, or that somebody changed since LaSCL
            wrote them, and over changed parts of the card. Files of other names stay even so.

    Returns:
        The branches that got a commit, and the Space's name if it did; those that held the same content already are
        left out.

    Raises:
        ValueError: no finished fold, one that is not finished, a wrong `hub_main` or a name that the Hub cannot have.
        NotOurs: a ValueError: without `replace`, a branch whose `config.json` is of no LaSCL model, a Space that is no
            page of LaSCL, or files that somebody changed. Nothing is written there.
        PublishingError: the Hub failed or refused; what is published so far stays.
    """
    run_dir = Path(run_dir)
    check_repo_id(repo_id)
    if space is not None:
        check_repo_id(space, "space")
    if torch_index_url is not None:
        check_index_url(torch_index_url)
    finished = finished_folds(run_dir)
    is_alone = not finished and (run_dir / FULL_DATA / "checkpoint").is_dir()  # --folds none --final_model true
    if not finished and not is_alone:
        raise ValueError(f"{run_dir} has no finished fold: give the output_dir of train.py.")
    chosen = finished if folds is None else folds
    for number in chosen:
        if number not in finished:
            raise ValueError(f"Fold {number} of {run_dir} is not finished; finished: {', '.join(map(str, finished))}.")
    sources = {f"fold-{number}": number for number in chosen}
    if (run_dir / "results.json").is_file() or is_alone:
        sources["main"] = fold_for_main(run_dir, hub_main)
    prepare_client()
    api, new = HfApi(), []
    for branch, number in sources.items():
        try:
            if publish_branch(api, run_dir, repo_id, branch, number, private, publish_text_encoder, replace):
                new.append(branch)
        except PublishingError as error:
            missing = list(sources)[list(sources).index(branch) :]
            raise PublishingError(f"{', '.join(missing)} of {repo_id} not published: {error}") from None
    if "main" not in sources:
        print(f"main of {repo_id} waits for the end of the run{', and so does the Space' * bool(space)}.", flush=True)
    elif space is not None:
        try:
            if publish_space(api, run_dir, space, repo_id, private, torch_index_url, replace):
                new.append(space)
        except PublishingError as error:
            raise PublishingError(f"the Space {space} not published: {error}") from None
        if torch_index_url is None:
            print(
                f"{space} requires torch from the default index: for Linux its CUDA build, gigabytes more than a Space "
                "on CPUs can use. --torch_index_url names an index with CPU builds.",
                flush=True,
            )
        if private:
            print(f"{repo_id} is private: give the Space a secret HF_TOKEN that may read it.", flush=True)
    return new


def finished_folds(run_dir: Path) -> list[int]:
    """Numbers of the folds that are complete, ascending."""
    return sorted(int(path.parent.name.removeprefix("fold-")) for path in run_dir.glob("fold-*/metrics.json"))


def fold_for_main(run_dir: Path, hub_main: str | None = None) -> int | None:
    """The number of the fold that `main` holds; `None` for the training on everything.

    `full_data` is that training, the default if there is one. `first_fold` is the first finished one.
    `best_validation` is the one with the highest UA in validation at the epoch that was selected, the first of equals;
    else the default, if there is validation. Folds are validated on different speakers, so it is no better than another
    beyond chance, but it is not chosen by the test.

    Raises:
        ValueError: another word, `best_validation` of a run without validation, or `full_data` of one that has not
            trained on everything.
    """
    if hub_main not in (None, *HUB_MAIN):
        raise ValueError(f"hub_main must be {' or '.join(HUB_MAIN)}; found {hub_main!r}.")
    has_full_data = (run_dir / FULL_DATA / "checkpoint").is_dir()
    if hub_main == "full_data" and not has_full_data:
        raise ValueError(
            "hub_main full_data needs a run that has trained on everything: train.py --hub_main full_data, or "
            "--final_model true."
        )
    if hub_main == "full_data" or (hub_main is None and has_full_data):
        return None
    folds, recipe = finished_folds(run_dir), _read_recipe(run_dir)
    if not folds:
        raise ValueError(f"hub_main {hub_main} needs a finished fold, and {run_dir} has the final model alone.")
    scores = {}
    for number in folds:
        history = json.loads((run_dir / f"fold-{number}" / "log_history.json").read_text(encoding="utf-8"))
        epochs = [entry["validation_ua"] for entry in history if "validation_ua" in entry]
        if epochs:
            scores[number] = max(epochs) if recipe.get("selection") == "best_validation" else epochs[-1]
    if hub_main == "first_fold" or (hub_main is None and not scores):
        return folds[0]
    if not scores:
        raise ValueError("hub_main best_validation needs a run with validation; take first_fold.")
    return max(scores, key=scores.get)


def _read_recipe(run_dir: Path) -> dict:
    return yaml.safe_load((run_dir / "recipe.yaml").read_text(encoding="utf-8"))


# ------------------------------------------------------------------------------------------------------------ staging


def stage_fold(
    run_dir: str | Path,
    number: int | None,
    repo_id: str | None = None,
    *,
    publish_text_encoder: bool = False,
) -> Path:
    """Puts together what is published of a fold, in `RUN/.hub/fold-K`; an earlier staging is replaced.

    Without a number it is the training on everything, which has no predictions.

    Args:
        run_dir: a run directory.
        number: of a finished fold.
        repo_id: for the code in the card.
        publish_text_encoder: with `text_encoder/`: the text encoder and its tokenizer. One that came from a folder is
            there always.

    Returns:
        The folder. Large files are hard links to the checkpoint's, where the file system has them.

    Raises:
        ValueError: a file of the run is damaged.
        OSError: a file is missing or cannot be written, or the text encoder cannot be loaded.
    """
    run_dir = Path(run_dir)
    name = FULL_DATA if number is None else f"fold-{number}"
    fold_dir, folder = run_dir / name, run_dir / ".hub" / name
    shutil.rmtree(folder, ignore_errors=True)
    # The card is written anew below: through a hard link it would be the checkpoint's that changes.
    left_out = shutil.ignore_patterns("README.md", "__pycache__", "training_args.bin")
    shutil.copytree(fold_dir / "checkpoint", folder, ignore=left_out, copy_function=link_or_copy)
    # Written anew, so without the checkpoint's link: that of an older LaSCL may hold paths of this computer.
    write_text(folder / "config.json", public_config(fold_dir / "checkpoint"))
    for name in ("predictions.csv", "metrics.json") if number is not None else ():
        link_or_copy(fold_dir / name, folder / name)
    for name in (f"{figure}.png" for figure in FIGURES):  # the card shows them
        if (run_dir / "figures" / name).is_file():
            (folder / "figures").mkdir(exist_ok=True)
            link_or_copy(run_dir / "figures" / name, folder / "figures" / name)
    if publish_text_encoder and not (folder / "text_encoder").is_dir():
        shutil.copytree(
            _save_text_encoder(run_dir, fold_dir / "checkpoint"), folder / "text_encoder", copy_function=link_or_copy
        )
    shutil.copyfile(HANDLER, folder / "handler.py")
    (folder / "requirements.txt").write_text("".join(f"{line}\n" for line in HANDLER_REQUIREMENTS), encoding="utf-8")
    fold_card(run_dir, number, repo_id, checkpoint=fold_dir / "checkpoint").save(folder / CARD)
    write_text(folder / RECORD, Record.of_folder(folder).text())
    return folder


def _save_text_encoder(run_dir: Path, checkpoint: Path) -> Path:
    """The text encoder and its tokenizer as a folder, saved once a run; whole or absent."""
    folder, partial = run_dir / ".hub" / "text_encoder", run_dir / ".hub" / ".text_encoder"
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    if config["text_encoder"] is None:
        raise ValueError("the checkpoint does not know its text encoder; leave out publish_text_encoder")
    if not folder.is_dir():
        save_text_encoder(config["text_encoder"], partial, config["text_encoder_revision"])
        partial.rename(folder)
    return folder


# ----------------------------------------------------------------------------------------------------------- the Hub


def prepare_client():
    """Gives huggingface_hub's client a time-out, and keeps the addresses of single uploads, which are signed, out of
    the log. For the whole process: its client is one for all."""

    def client_with_time_out():
        client = default_client_factory()
        client.timeout = TIME_OUT
        return client

    set_client_factory(client_with_time_out)
    logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)


def publish_branch(
    api: HfApi,
    run_dir: Path,
    repo_id: str,
    branch: str,
    number: int | None,
    private: bool | None = None,
    publish_text_encoder: bool = False,
    replace: bool = False,
) -> bool:
    """Stages a fold and brings a branch to its content in one commit, patiently. Returns whether one was needed.

    Raises:
        NotOurs: see `publish`.
        PublishingError: the Hub refused or went on failing, or the fold cannot be staged.
    """
    try:
        folder = stage_fold(run_dir, number, repo_id, publish_text_encoder=publish_text_encoder)
    except (OSError, ValueError) as error:
        raise PublishingError(f"it cannot be put together ({_one_line(error)}).") from None
    message = "Trained on everything" if number is None else f"Fold {number}"
    return _upload_patiently(api, repo_id, branch, folder, private, message=message, replace=replace)


def publish_space(
    api: HfApi,
    run_dir: Path,
    space: str,
    model_id: str,
    private: bool | None = None,
    torch_index_url: str | None = None,
    replace: bool = False,
) -> bool:
    """Stages the Space of a published model and brings it to its content in one commit, as `publish_branch` does.

    Raises:
        NotOurs: see `publish`.
        PublishingError: the Hub refused or went on failing, or the Space cannot be staged.
    """
    try:
        folder = stage_space(run_dir / ".hub" / "space", space, model_id, torch_index_url)
        write_text(folder / RECORD, Record.of_folder(folder).text())
    except (OSError, ValueError) as error:
        raise PublishingError(f"it cannot be put together ({_one_line(error)}).") from None
    message = f"A demo of {model_id}"
    options = {"message": message, "replace": replace, "repo_type": "space"}
    return _upload_patiently(api, space, "main", folder, private, **options)


def _upload_patiently(api: HfApi, repo_id: str, branch: str, folder: Path, private: bool | None, **options) -> bool:
    give_up_at, wait_s = None, FIRST_WAIT_S
    while True:
        try:
            return _upload(api, repo_id, branch, folder, private, **options)
        except NotOurs:
            raise
        except (HfHubHTTPError, httpx.HTTPError, OSError, RuntimeError, ValueError) as error:
            if not _may_pass(error):
                raise PublishingError(_reason(error)) from None
            give_up_at = give_up_at or time.monotonic() + PATIENCE_S
            this_wait_s = _retry_after_s(error) or wait_s
            if time.monotonic() + this_wait_s > give_up_at:
                raise PublishingError(_reason(error)) from None
            print(f"{branch} of {repo_id}: {_reason(error)} Trying again in {this_wait_s:g} s.", flush=True)
            time.sleep(this_wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)


def _upload(
    api: HfApi,
    repo_id: str,
    branch: str,
    folder: Path,
    private: bool | None,
    message: str,
    replace: bool = False,
    repo_type: str = "model",
) -> bool:
    try:
        head = _head(api, repo_id, branch, repo_type)
    except RepositoryNotFoundError:
        api.create_repo(repo_id, private=private, repo_type=repo_type, space_sdk=SDK if repo_type == "space" else None)
        head = None
    except RevisionNotFoundError:
        head = None
    if head is None:
        if branch != "main":  # every repository has that
            api.create_branch(repo_id, branch=branch)
        head = _head(api, repo_id, branch, repo_type)
    remote = _Remote(api, repo_id, branch, repo_type, head)
    wanted, stale, kept = _plan(remote, folder, replace)
    if kept:
        print(
            f"{branch} of {repo_id}: left as somebody else wrote or changed it: {', '.join(kept)} (--replace writes "
            "LaSCL's).",
            flush=True,
        )
    changes = _operations(remote, wanted, stale)
    if not changes:
        print(f"{branch} of {repo_id}: is there already.", flush=True)
        return False
    print(f"{branch} of {repo_id}: publishing ...", flush=True)
    # With the parent, a branch that somebody else moves meanwhile is looked at again instead of overwritten unseen.
    commit = api.create_commit(
        repo_id, changes, commit_message=message, revision=branch, parent_commit=head.sha, repo_type=repo_type
    )
    if _operations(_Remote(api, repo_id, branch, repo_type), wanted, stale):
        raise RuntimeError(f"commit {commit.oid} does not hold what was sent.")
    print(f"{branch} of {repo_id}: published.", flush=True)
    return True


def _head(api: HfApi, repo_id: str, branch: str, repo_type: str) -> ModelInfo | SpaceInfo:
    """The newest commit of a branch and its files. (Listing the tree would wait for ever, whatever the client says.)"""
    return api.repo_info(repo_id, revision=branch, files_metadata=True, timeout=TIME_OUT, repo_type=repo_type)


class _Remote:
    """A commit on the Hub, by default the newest of a branch: its files, and what some of them say."""

    def __init__(self, api: HfApi, repo_id: str, branch: str, repo_type: str = "model", head=None):
        self.api, self.repo_id, self.branch, self.repo_type = api, repo_id, branch, repo_type
        self.head = head or _head(api, repo_id, branch, repo_type)
        self.files = {file.rfilename: file for file in self.head.siblings}

    def read(self, name: str) -> bytes | None:
        """A file's content, if the commit has it."""
        if name not in self.files:
            return None
        where = f"spaces/{self.repo_id}" if self.repo_type == "space" else self.repo_id
        # By the client with a time-out; `hf_hub_download` would wait for minutes.
        response = get_session().get(
            f"{self.api.endpoint}/{where}/resolve/{self.head.sha}/{quote(name)}", headers=build_hf_headers()
        )
        hf_raise_for_status(response)
        return response.content

    def is_of_lascl(self) -> bool:
        """Whether this is a LaSCL model, or a Space of LaSCL's page; a Space that the Hub has just made counts too."""
        if self.repo_type == "space":
            return "app.py" not in self.files or "space.json" in self.files
        return is_lascl_config(self.read("config.json") or b"")

    def named(self) -> str:
        return f"{self.branch} of {self.repo_id}" if self.repo_type == "model" else f"the Space {self.repo_id}"


# Beside a model somebody may have one of his own. The card is looked at part by part.
LEFT_TO_OTHERS = ("handler.py", "requirements.txt")


def _plan(remote: _Remote, folder: Path, replace: bool) -> tuple[dict[str, Path | bytes], list[str], list[str]]:
    """What a branch is to hold of a folder, paths that go, and what stays as somebody else wrote it.

    Raises:
        NotOurs: see `publish`.
    """
    wanted = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    record = Record.parsed(remote.read(RECORD) or b"")
    is_of_lascl = record is not None or remote.is_of_lascl()
    if not is_of_lascl and not replace:
        _refuse_another_model(remote, wanted)

    kept = []
    for name, content in list(wanted.items()):
        there = remote.files.get(name)
        is_ours = record.wrote(there) if record and there else is_of_lascl and name not in LEFT_TO_OTHERS
        if there is None or is_ours or replace or name in (CARD, RECORD) or _is_same(content, there):
            continue
        if name not in LEFT_TO_OTHERS:
            raise NotOurs(
                f"{remote.named()} holds {name}, which is not as LaSCL wrote it. Publish elsewhere, or give "
                "lascl-publish --replace to write over it."
            )
        del wanted[name]
        kept.append(name)
    if CARD in remote.files and CARD in wanted and (is_of_lascl or not replace):
        new = wanted[CARD].read_text(encoding="utf-8")
        old = remote.read(CARD).decode("utf-8", errors="replace")
        if record or remote.repo_type != "space":  # a Space without a record has the Hub's own
            text, parts = merged_card(new, old, record, replace=replace)
            wanted[CARD] = text.encode()
            kept += [f"{CARD} ({', '.join(part or 'its beginning' for part in parts)})"] if parts else []
    written = record.files if record else {}
    return wanted, [name for name in written if _may_go(name, remote, record, folder)], kept


def _refuse_another_model(remote: _Remote, wanted: dict[str, Path]):
    """Raises NotOurs if a branch holds another model, or any file in the way that is not the card."""
    if remote.repo_type == "space":
        raise NotOurs(
            f"{remote.named()} has an app.py that is not LaSCL's. Give another name, or lascl-publish --replace to "
            "write over it."
        )
    if "config.json" in remote.files:
        raise NotOurs(
            f"{remote.named()} holds a config.json that is of no LaSCL model. Publish elsewhere, or give lascl-publish "
            "--replace to write over it; files of other names stay."
        )
    in_the_way = [name for name in wanted if name in remote.files and name not in (CARD, *LEFT_TO_OTHERS)]
    if different := [name for name in in_the_way if not _is_same(wanted[name], remote.files[name])]:
        raise NotOurs(
            f"{remote.named()} holds {different[0]}, which LaSCL did not write. Publish elsewhere, or give "
            "lascl-publish --replace to write over it."
        )


def _may_go(name: str, remote: _Remote, record: Record, folder: Path) -> bool:
    """Whether LaSCL wrote a file, nobody changed it since, and it is of no use any more."""
    return name in remote.files and record.wrote(remote.files[name]) and not (folder / name).is_file()


def _operations(remote: _Remote, wanted: dict[str, Path | bytes], stale: list[str]) -> list:
    """Those that give a commit the wanted files and take the stale ones away."""
    added = [
        CommitOperationAdd(name, content)
        for name, content in wanted.items()
        if name not in remote.files or not _is_same(content, remote.files[name])
    ]
    return added + [CommitOperationDelete(name, is_folder=False) for name in stale if name in remote.files]


def _is_same(content: Path | bytes, remote: RepoSibling) -> bool:
    if (len(content) if isinstance(content, bytes) else content.stat().st_size) != remote.size:
        return False
    sha256, sha1 = hashes(content)
    return sha256 == remote.lfs.sha256 if remote.lfs else sha1 == remote.blob_id


# ------------------------------------------------------------------------------------------------------- when it fails


def _root(error: BaseException) -> BaseException:
    """What an upload's RuntimeError was raised from: the answer of the Hub or the fault of the connection."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _may_pass(error: BaseException) -> bool:
    """Whether trying again can help: the Hub is busy, away, or has changed meanwhile."""
    root = _root(error)
    if isinstance(root, HfHubHTTPError):
        return root.response.status_code in PASSING or root.response.status_code >= 500
    # A web page instead of JSON is how a gateway says that the Hub is away. RuntimeError: a client that another thread
    # closed, or a commit that is not what was sent.
    return isinstance(root, (httpx.TransportError, json.JSONDecodeError, RuntimeError))


def _retry_after_s(error: BaseException) -> float | None:
    root = _root(error)
    wait_s = root.response.headers.get("Retry-After", "") if isinstance(root, HfHubHTTPError) else ""
    return float(wait_s) if wait_s.isdigit() else None


def _reason(error: BaseException) -> str:
    """A sentence without the token, and with the remedy where the user has one."""
    root = _root(error)
    if isinstance(root, HfHubHTTPError):
        said = f"the Hub answered {root.response.status_code} {root.response.reason_phrase}".rstrip()
        if root.response.status_code in (401, 403, 404):
            return f"{said}: log in with `hf auth login`, or set HF_TOKEN, with a token that may write there."
        return f"{said} ({_one_line(root.server_message or 'without a word')})."
    if isinstance(root, httpx.TimeoutException):
        return "the Hub does not answer (time-out)."
    if isinstance(root, httpx.TransportError):
        return f"the connection to the Hub failed ({_one_line(root)})."
    if isinstance(root, json.JSONDecodeError):
        return "the Hub is away (its answer is not JSON)."
    return f"{_one_line(root)}."


def _one_line(words: object) -> str:
    """Without line breaks, without a full stop, and without the token, whoever repeats it."""
    text, token = " ".join(str(words).split()).rstrip(".") or type(words).__name__, get_token()
    return text.replace(token, "...") if token else text


# --------------------------------------------------------------------------------------------------- beside training


def refuse_early(repo_id: str):
    """Raises NotOurs if a repository's `main` holds another model. A Hub that does not answer is asked later."""
    try:
        remote = _Remote(HfApi(), repo_id, "main")
        if Record.parsed(remote.read(RECORD) or b"") is None and not remote.is_of_lascl():
            _refuse_another_model(remote, {})
    except NotOurs:
        raise
    except Exception as error:
        if not isinstance(error, RepositoryNotFoundError):
            print(f"push_to_hub: {repo_id} cannot be looked at now: {_reason(error)}", flush=True)


class BackgroundPublisher:
    """Publishes folds beside the training of the next: one thread, which training never waits for. As a context it
    lets go of what has not begun when training fails.

    Args:
        run_dir, repo_id, private, hub_main, publish_text_encoder: as for `publish`.

    Raises:
        NotOurs: the repository's `main` holds another model, see `publish`; said before anything is trained.
    """

    def __init__(self, run_dir: Path, repo_id: str, *, private=None, hub_main=None, publish_text_encoder=False):
        self.run_dir, self.repo_id, self.hub_main = run_dir, repo_id, hub_main
        self.options = {"private": private, "publish_text_encoder": publish_text_encoder}
        self.pool, self.uploads = ThreadPoolExecutor(max_workers=1), {}
        prepare_client()
        refuse_early(repo_id)
        disable_progress_bars()  # those of training are enough
        if get_token() is None:
            print("push_to_hub: no token is found; log in with `hf auth login` before the first fold ends.", flush=True)

    @classmethod
    def of_recipe(cls, recipe: Recipe, run_dir: Path) -> BackgroundPublisher:
        return cls(
            run_dir,
            recipe.hub_model_id,
            private=recipe.hub_private_repo,
            hub_main=recipe.hub_main,
            publish_text_encoder=recipe.publish_text_encoder,
        )

    def __enter__(self) -> BackgroundPublisher:
        return self

    def __exit__(self, kind, error, traceback):
        if error is not None:
            self.cancel()

    def add(self, number: int):
        """Takes a finished fold; returns at once."""
        branch = f"fold-{number}"
        self.uploads[branch] = self.pool.submit(
            publish_branch, HfApi(), self.run_dir, self.repo_id, branch, number, **self.options
        )

    def cancel(self):
        """Lets go what has not begun: `lascl-publish`, or the same training again, will publish it."""
        self.pool.shutdown(wait=False, cancel_futures=True)

    def finish(self):
        """Waits for the uploads, then publishes what is missing, the cards with the results of the whole run, and
        `main`. Never raises for the Hub's sake: prints a sentence with the command that publishes the rest."""
        waiting = [branch for branch, upload in self.uploads.items() if not upload.done()]
        if waiting:
            print(f"Publishing what is left: {', '.join(waiting)}.", flush=True)
        self.pool.shutdown(cancel_futures=True)  # what has not begun, `publish` does
        if sys.stderr.isatty():
            enable_progress_bars()
        try:
            publish(self.run_dir, self.repo_id, hub_main=self.hub_main, **self.options)
        except Exception as error:
            reason = (
                error
                if isinstance(error, (PublishingError, NotOurs))
                else f"{self.repo_id} not published: {_reason(error)}"
            )
            print(f"{reason} The run is complete; publish it with: {self.command()}", file=sys.stderr)

    def command(self) -> str:
        words = ["lascl-publish", str(self.run_dir), "--hub_model_id", self.repo_id]
        if self.options["private"] is not None:
            words += ["--hub_private_repo", str(self.options["private"]).lower()]
        if self.hub_main:
            words += ["--hub_main", self.hub_main]
        if self.options["publish_text_encoder"]:
            words.append("--publish_text_encoder")
        return shlex.join(words)


if __name__ == "__main__":
    main()
