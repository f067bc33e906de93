"""How a scope is listed, without the I/O: page by page, or whole where a server has no pages."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence

from pikuri_memory.client import protocol
from pikuri_memory.client.protocol import Request
from pikuri_memory.client.replies import Page
from pikuri_memory.record import Record

log = logging.getLogger(__name__)


class Listing:
    """The requests that list a scope, each to be answered before the next is asked for::

        while (request := listing.request()) is not None:
            use(listing.take(send(request)))

    Args:
        user_id: The person; without any of the three ids, the memories of everyone.
        agent_id: The agent.
        run_id: The conversation or task.
        show_expired: Whether expired memories are listed too.
        limit: Most memories; None for all.
        page_size: Memories per request.
    """

    def __init__(
        self,
        *,
        user_id: str | None,
        agent_id: str | None,
        run_id: str | None,
        show_expired: bool,
        limit: int | None,
        page_size: int,
    ) -> None:
        self._page = functools.partial(
            protocol.list_page,
            user_id=user_id,
            agent_id=agent_id,
            run_id=run_id,
            show_expired=show_expired,
        )
        self._limit = limit
        self._page_size = page_size
        self._listed = 0
        self._cursor: str | None = None
        self._cut: Page | None = None
        self._over = limit is not None and limit <= 0

    def request(self) -> Request[Page] | None:
        """What to send now; None when all is listed."""
        if self._over:
            return None
        if self._cut is not None:
            return self._page(top_k=None, cursor=None)
        return self._page(top_k=self._top_k, cursor=self._cursor)

    def take(self, page: Page) -> Sequence[Record]:
        """What of the reply is listed."""
        top_k, limit = self._top_k, self._limit
        if self._cut is not None:
            page = page if len(page.records) > len(self._cut.records) else self._cut
            self._cut = None
        elif limit is None and not page.paged and len(page.records) == top_k:
            # Cut at the number: the patched server of the container stack lists all without one.
            self._cut = page
            return ()
        _warn_if_cut(page, top_k)
        self._listed += len(page.records)
        self._cursor = page.next
        self._over = page.next is None or (limit is not None and self._listed >= limit)
        return page.records if limit is None else page.records[:top_k]

    @property
    def _top_k(self) -> int:
        if self._limit is None:
            return self._page_size
        return min(self._page_size, self._limit - self._listed)


def _warn_if_cut(page: Page, top_k: int) -> None:
    """Say in the log that a server without pages may hold more than it listed.

    mem0's server at the pinned commit lists 20 of a scope whatever it is asked for.
    """
    if not page.paged and len(page.records) in (20, top_k):
        log.warning(
            "the server listed exactly %d memories and has no pages: there may be more",
            len(page.records),
        )
