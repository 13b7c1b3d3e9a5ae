"""What Prometheus is told of the record: counts by gallery, as they are at a scrape."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric

from sealface.enrollment.sealer import backlog
from sealface.protocol import names
from sealface.storage.galleries import Census, Galleries, Gallery

_PAGE = 100


class RecordMetrics:
    """Reads the record; a gallery that has not changed since the last scrape is not counted again.

    Args:
        galleries: the record.
    """

    def __init__(self, galleries: Galleries) -> None:
        self._galleries = galleries
        self._counted: dict[tuple[str, int], Census] = {}  # by gallery and epoch, which every change moves on

    def __call__(self) -> list[Metric]:
        """All galleries."""
        of_gallery = ("gallery",)
        templates = GaugeMetricFamily(
            "sealface_templates",
            "Templates: in the open tail, sealed, or erased and still in a block.",
            labels=(*of_gallery, "state"),
        )
        blocks = GaugeMetricFamily("sealface_blocks", "Sealed blocks.", labels=of_gallery)
        groups = GaugeMetricFamily(
            "sealface_tail_groups",
            "Length of the open tail: groups, that are scored one by one.",
            labels=of_gallery,
        )
        waiting = GaugeMetricFamily(
            "sealface_sealing_backlog_templates", "Open templates that fill blocks to be sealed.", labels=of_gallery
        )
        version = GaugeMetricFamily(
            "sealface_gallery_key_version", "Number of the key version that a gallery is under.", labels=of_gallery
        )
        before, self._counted = self._counted, {}
        for gallery in self._all():
            moment = gallery.id, gallery.epoch
            census = before.get(moment) or self._galleries.census(gallery)
            self._counted[moment] = census
            for state, count in (("open", census.open), ("sealed", census.sealed), ("erased", census.erased)):
                templates.add_metric((gallery.id, state), count)
            blocks.add_metric((gallery.id,), census.blocks)
            groups.add_metric((gallery.id,), census.groups)
            waiting.add_metric((gallery.id,), backlog(gallery.layout, census))
            version.add_metric((gallery.id,), names.key_version(gallery.key_version)[1])
        return [templates, blocks, groups, waiting, version]

    def _all(self) -> Iterator[Gallery]:
        after = ""
        while page := self._galleries.page(after, _PAGE):
            yield from page
            after = page[-1].id
