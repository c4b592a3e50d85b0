"""The way to the Hugging Face Hub, where a token exists."""

from __future__ import annotations

from collections.abc import Sequence

from infra.base import storage
from infra.base.errors import OacirError


def token_for(repo_id: str, out: str) -> str:
    """The Hub token of this machine, asked for before anything is written.

    Raises:
        OacirError: there is none, or the export would lie where the Hub's client cannot read it.
    """
    from huggingface_hub import get_token

    if storage.is_s3(out):
        raise OacirError(f"push {repo_id}: the Hub's client uploads local folders; choose a local --out")
    token = get_token()
    if not token:
        raise OacirError(
            f"push {repo_id}: no Hugging Face token on this machine; run `hf auth login` or set HF_TOKEN, or leave"
            " --push out"
        )
    return token


def push(folder: str, repo_id: str, token: str, private: bool, ignored: Sequence[str] = ()) -> str:
    """Upload an export to a dataset repository, made if it is not there; its URL.

    Raises:
        OacirError: the Hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    try:
        url = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id,
            repo_type="dataset",
            folder_path=folder,
            commit_message="Export by oacir",
            ignore_patterns=list(ignored),
        )
    except Exception as error:  # the client raises its own, requests' and httpx' errors
        text = " ".join(str(error).split())[:300]
        raise OacirError(
            f"push {repo_id}: the Hub did not take it ({text}); check the name and the token's rights, the export"
            f" itself lies in {folder}"
        ) from error
    return str(url)
