"""The bundle, from where an invitation says: file by file into its place, so that nothing is on the phone twice."""

from __future__ import annotations

from pathlib import Path

from fedspzo.device_runtime.device.download import fetch_bundle
from fedspzo.device_runtime.device.transfer import DownloadError
from fedspzo.device_runtime.link.invitation import Invitation


class Download:
    """One download that can be watched and cancelled from other threads.

    Attributes:
        progress: the file at hand, the bytes of it that are there, and all it has; None before the first.
    """

    def __init__(self, invitation: Invitation) -> None:
        self._invitation = invitation
        self._cancelled = False
        self.progress: tuple[str, int, int] | None = None

    def run(self, folder: Path) -> None:
        """Fill the folder. Where that ends early, the next one continues.

        Raises:
            DownloadError: the invitation names no place, something cannot be downloaded, or it was cancelled.
            BundleError, StateError: see :func:`fedspzo.device_runtime.device.download.fetch_bundle`.
        """
        url, authority = self._invitation.bundle_url, self._invitation.access.authority
        if not url:
            raise DownloadError(
                "download.no-place", "the invitation does not say where the bundle is; import the job's zip file"
            )
        fetch_bundle(url, folder, authority if url.startswith("https:") else "", self._tell)

    def cancel(self) -> None:
        """Stop at the next piece that arrives."""
        self._cancelled = True

    def _tell(self, name: str, done: int, total: int) -> None:
        self.progress = name, done, total
        if self._cancelled:
            raise DownloadError("download.cancelled", "the download was cancelled; what has arrived is kept")
