"""A materialised model on the Hugging Face hub: its folder becomes a repository there."""

from __future__ import annotations

import os
from pathlib import Path

from fedspzo.device_runtime.errors import ExportError


def push_folder(folder: Path, repository: str) -> str:
    """Upload a folder's files as one commit. A repository that is not there yet is made, and is private.

    The endpoint is HF_ENDPOINT where that is set; the token is HF_TOKEN, or that of ``hf auth login``.

    Returns:
        The repository's address.

    Raises:
        ExportError: the hub is not reached, or refuses.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, library_name="fedspzo")
        made = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id, folder_path=folder, commit_message="A model trained by federated forward passes"
        )
        return str(made)
    except Exception as error:  # the library's HTTP client, and so its errors, change from release to release
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ExportError(
            "export.push-failed",
            f"{folder} is written, and the hub did not take it as '{repository}' ({reason}); log in with hf auth login,"
            f" check the name and the network, and upload it with: hf upload {repository} {folder}",
        ) from None
