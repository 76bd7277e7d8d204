"""Models on the Hugging Face Hub, or a mirror of it: fetched by commit and checked, pushed in one commit and checked.

All traffic is huggingface_hub's, so that its settings hold: HF_ENDPOINT (a mirror), HF_HUB_OFFLINE, HF_HOME (the
cache), HF_TOKEN, HTTPS_PROXY, and its retries and resumed downloads.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from idml_zoo.files import sha256_of
from idml_zoo.models.files import CONFIG, WEIGHTS, WeightsError

LOCAL_WEIGHTS = "IDML_ZOO_WEIGHTS"  # environment variable: a folder of weights that is searched before the Hub
_NETWORK = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")  # modules of a client's network errors
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


class HubError(OSError):
    """A repository that cannot be read or written; the message says why and what to do."""


@dataclass(frozen=True)
class Fetched:
    """One file of a repository.

    Attributes:
        path: of the file on this machine.
        commit: that it belongs to; None for a local folder.
    """

    path: Path
    commit: str | None


def split_name(name: str) -> tuple[str, str | None]:
    """Returns ("user/name", "revision") of "user/name@revision"; the revision is None where the name has none.

    Raises:
        ValueError: not the name of a repository.
    """
    repo, _, revision = name.partition("@")
    if not _REPO.fullmatch(repo) or ".." in repo:
        raise ValueError(f"{name!r} is no repository of the Hub; expected user/name or user/name@revision")
    return repo, revision or None


def local_folder(name: str) -> Path | None:
    """Returns the folder of a model's or a repository's name in :data:`LOCAL_WEIGHTS`; None where there is none."""
    root = os.environ.get(LOCAL_WEIGHTS)
    if not root:
        return None
    folder = Path(root) / name
    return folder if (folder / CONFIG).is_file() else None


def fetch(
    repo: str,
    filename: str,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    most_bytes: int | None = None,
) -> Fetched:
    """Returns one file of a model's repository; downloads it if the cache does not have it.

    Args:
        repo: "user/name".
        filename: in the repository.
        revision: commit, branch or tag; None for the newest.
        token: None for the one that is logged in; False for none.
        cache_dir: None for the Hub's own cache.
        most_bytes: refuse a larger file before it is downloaded.

    Raises:
        HubError: see :func:`explained`.
        WeightsError: too large, or its content is not what the Hub says it is.
    """
    from huggingface_hub import constants, hf_hub_download, hf_hub_url

    if most_bytes is not None and not constants.HF_HUB_OFFLINE:
        size = _size(hf_hub_url(repo, filename, revision=revision), token)
        if size is not None and size > most_bytes:
            raise WeightsError(
                f"{filename} of {repo} has {size:,} bytes where at most {most_bytes:,} are expected; not downloaded"
            )
    with explained(repo, revision):
        path = Path(
            hf_hub_download(
                repo, filename, revision=revision, token=token, cache_dir=cache_dir, library_name="idml_zoo"
            )
        )
    snapshot = path.parent.name
    commit = snapshot if _COMMIT.fullmatch(snapshot) else None
    if revision is not None and _COMMIT.fullmatch(revision) and commit not in (None, revision):
        raise WeightsError(f"{repo} gave commit {commit} where {revision} was asked for")
    if most_bytes is not None and path.stat().st_size > most_bytes:
        raise WeightsError(f"{path} has {path.stat().st_size:,} bytes where at most {most_bytes:,} are expected")
    blob = path.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", blob.name) and sha256_of(blob) != blob.name:  # a large file is called by its hash
        raise WeightsError(
            f"{filename} of {repo} has not the sha256 that the Hub says ({blob.name[:12]}…): a damaged download or "
            f"cache; delete {blob} and try again"
        )
    return Fetched(path, commit)


def _size(url: str, token: str | bool | None) -> int | None:
    """Returns a file's bytes as the server says; None where it does not, as the download's error is clearer."""
    from huggingface_hub import get_hf_file_metadata

    try:
        return get_hf_file_metadata(url, token=token).size
    except Exception:
        return None


@contextmanager
def explained(repo: str, revision: str | None = None) -> Iterator[None]:
    """Turns what huggingface_hub raises into one :class:`HubError` that names the repository and what to do."""
    import huggingface_hub.errors as errors
    from huggingface_hub import constants

    where = f"{repo}{f' at {revision}' if revision else ''} on {constants.ENDPOINT}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise HubError(
            f"{where} asks for consent: accept its terms at {constants.ENDPOINT}/{repo}, then `hf auth login` or token="
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(
            f"no repository {where}, or it is private: check the name; `hf auth login`, HF_TOKEN or token= for access"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise HubError(f"no revision {where}; give a commit, a branch or a tag that is there") from error
    except errors.LocalEntryNotFoundError as error:
        if constants.HF_HUB_OFFLINE:
            raise HubError(
                f"{where} is not in the cache, and HF_HUB_OFFLINE is set: load it once with a connection, unset it, or "
                f"put the model's folder under ${LOCAL_WEIGHTS}"
            ) from error
        raise HubError(
            f"cannot reach {where}, and it is not in the cache ({_short(error)}); check the connection, HF_ENDPOINT "
            f"and HTTPS_PROXY, or put the model's folder under ${LOCAL_WEIGHTS}"
        ) from error
    except errors.EntryNotFoundError as error:
        raise HubError(f"{where} is no model of idml_zoo: it lacks {CONFIG} or {WEIGHTS} ({_short(error)})") from error
    except (errors.HFValidationError, errors.HfHubHTTPError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        hint = {
            401: "the token is not valid: `hf auth login`, HF_TOKEN or token=",
            403: "the token has no right to this: one with write access is needed to push",
            409: "somebody else changed it in the meantime; look, and try again",
            429: "too many requests; wait, or log in for a higher limit",
        }.get(status or 0, "try again later" if status and status >= 500 else "see the message")
        raise HubError(f"{where}: {_short(error)}; {hint}") from error
    except Exception as error:
        # huggingface_hub's network errors are those of its HTTP library, which has changed its name before
        cause = error.__cause__ if type(error) is RuntimeError and error.__cause__ else error  # "Error while uploading"
        if type(cause).__module__.split(".")[0] not in _NETWORK:
            raise
        raise HubError(
            f"cannot reach {where} ({_short(cause)}); check the connection, HF_ENDPOINT and HTTPS_PROXY"
        ) from error


def _short(error: BaseException) -> str:
    cause = error.__cause__ or error.__context__ or error
    line = next((part for part in str(cause).splitlines() if part.strip()), type(cause).__name__)
    return line.strip()[:200]


def push(
    files: Mapping[str, Path],
    repo: str,
    message: str = "Upload with idml_zoo",
    token: str | bool | None = None,
    private: bool | None = None,
    revision: str | None = None,
) -> str:
    """Uploads files in one commit, downloads them again into an empty folder, and compares; returns the commit.

    Args:
        files: name in the repository to path here.
        repo: "user/name"; made if it is not there.
        message: of the commit.
        token: one with write access; None for the one that is logged in.
        private: for a repository that is made now.
        revision: branch; made if it is not there; None for the main one.

    Raises:
        HubError: see :func:`explained`; or the downloaded files are not the uploaded ones.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    repo, _ = split_name(repo)
    api = HfApi(token=token, library_name="idml_zoo")
    with explained(repo, revision):
        repo = api.create_repo(repo, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        operations = [CommitOperationAdd(name, path) for name, path in sorted(files.items())]
        commit = api.create_commit(repo, operations, commit_message=message, revision=revision).oid
    with tempfile.TemporaryDirectory() as empty:
        for name, path in sorted(files.items()):
            again = fetch(repo, name, commit, token, empty).path
            if sha256_of(again) != sha256_of(path):
                raise HubError(f"{name} of {repo} at {commit} is not what was sent; push again")
    return commit
