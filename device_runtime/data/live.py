"""A device's examples as their file is now: examples that are added during a job count from the next round on."""

from __future__ import annotations

import logging
from pathlib import Path

from fedspzo.device_runtime.data.store import DataStore, load_data
from fedspzo.device_runtime.errors import DataError
from fedspzo.device_runtime.model.bundle import Bundle

log = logging.getLogger(__name__)


class LiveData:
    """The examples of a source, read again when its file has changed."""

    def __init__(self, source: str, bundle: Bundle, cache: Path) -> None:
        """Read and tokenise; a record that is not an example is left out, as long as there is another that is one.

        Raises:
            DataError: the source cannot be read, or has no examples.
        """
        self._source, self._bundle, self._cache = source, bundle, cache
        self._skipped: set[str] = set()
        self._seen = _version(source)
        self._store = self._load()

    def current(self) -> DataStore:
        """The examples; those from before while the file cannot be read or is being written."""
        version = _version(self._source)
        if version != self._seen:
            self._seen = version
            try:
                self._store = self._load()
                log.info("%s has changed: %d examples", self._source, len(self._store))
            except (DataError, OSError) as error:
                log.warning("the examples stay as they were: %s", error, extra={"kind": getattr(error, "kind", "")})
        return self._store

    def _load(self) -> DataStore:
        wrong: list[DataError] = []
        try:
            return load_data(self._source, self._bundle, self._cache, wrong.append)
        except DataError as error:
            if error.kind != "data.no-examples" or not wrong:
                raise
            raise wrong.pop(0) from None
        finally:
            for line in wrong:
                if str(line) not in self._skipped:
                    self._skipped.add(str(line))
                    log.warning("%s; it is left out", line, extra={"kind": line.kind})


def _version(source: str) -> tuple[int, int] | None:
    """What changes with a file; None for what is not a file."""
    try:
        status = Path(source).stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
