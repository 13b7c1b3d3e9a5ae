"""Keeps galleries that are searched as they are in the record: prepared before a search asks, forgotten when erased."""

from __future__ import annotations

import structlog

from sealface.errors import SealfaceError
from sealface.matching.matcher import LONGEST_S, Matcher
from sealface.runtime.looking import Looking
from sealface.storage.galleries import Galleries

_log = structlog.get_logger("sealface.matching")
_LOOK_S = 0.5
_START_S = 600.0  # a large gallery takes longer than a search may
_PAGE = 100


class Watch(Looking):
    """Looks for changes in the background, so that erased templates leave memory without a search.

    Args:
        galleries: the record.
        matcher: what holds galleries in memory.
    """

    def __init__(self, galleries: Galleries, matcher: Matcher) -> None:
        super().__init__("watch", _LOOK_S)
        self._galleries = galleries
        self._matcher = matcher

    def start(self) -> None:
        """Load all galleries that fit; returns when they are in memory. Then watch them in the background."""
        after = ""
        while page := self._galleries.page(after, _PAGE):
            for gallery in page:
                self._hold(gallery.id, _START_S)
            after = page[-1].id
        super().start()

    def look(self) -> None:
        """Have in memory what has changed, and nothing that is erased."""
        for gallery_id in self._matcher.stale():
            self._hold(gallery_id)

    def _hold(self, gallery_id: str, timeout_s: float = LONGEST_S) -> None:
        try:
            self._matcher.hold(gallery_id, timeout_s)
        except SealfaceError as error:  # a search will say so to its caller
            _log.warning("not loaded", reason=error.reason)
