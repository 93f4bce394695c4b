"""Weights on this machine, and how they get here from the Hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prunebench.errors import ModelError, typed_line

__all__ = ["Place", "fetch"]


@dataclass(frozen=True)
class Place:
    """Weights on this machine.

    Attributes:
        folder: where they are.
        name: repository or folder name, as it stands in plans and records.
        revision: the Hub's commit, or a hash of the files.
    """

    folder: Path
    name: str
    revision: str


def fetch(repository: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """The folder in the Hub's cache, which is named by its commit, with the files that match `patterns`.

    Raises:
        ModelError: it cannot be fetched, with what to do.
    """
    from huggingface_hub import errors as hub
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns)))
    except hub.GatedRepoError as error:
        raise ModelError(
            f"{repository} is gated: accept its licence on huggingface.co and log in with `hf auth login`"
        ) from error
    except hub.RevisionNotFoundError as error:
        raise ModelError(f"{repository} has no revision {revision!r} on the Hub") from error
    except (hub.RepositoryNotFoundError, hub.HFValidationError) as error:
        raise ModelError(f"no repository {repository!r} on the Hub (or it is private: `hf auth login`)") from error
    except Exception as error:  # every transport has errors of its own
        raise ModelError(
            f"cannot fetch {repository} from the hub ({typed_line(error)}): download the folder where there is a "
            "network and give it by --model-path DIR"
        ) from error
