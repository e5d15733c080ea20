"""Mailbox: what is put in comes out once and in order; only deltas give way, and are counted."""

from __future__ import annotations

import json
import threading
from unittest import mock

import pytest

from codex_app_server._sync.mailbox import SyncMailbox
from codex_app_server.notifications import Notification

DELTA, ITEM = "item/agentMessage/delta", "item/completed"


def line(method: str, number: int) -> bytes:
    return json.dumps({"method": method, "params": {"number": number}}, separators=(",", ":")).encode()


def deltas(first: int, last: int) -> list[bytes]:
    return [line(DELTA, number) for number in range(first, last + 1)]


def numbers(mailbox: SyncMailbox) -> list[int]:
    """All that it holds, each taken by itself."""
    found: list[int] = []
    while (notification := mailbox.get(5)) is not None:
        found.append(notification.params["number"])
    return found


def test_batches_come_out_in_their_order() -> None:
    mailbox = SyncMailbox()
    mailbox.put([line(ITEM, 0), *deltas(1, 50), line(ITEM, 51)], [ITEM, *[DELTA] * 50, ""])
    mailbox.put(deltas(52, 70), [DELTA] * 19)
    mailbox.put([line(ITEM, 71)])
    mailbox.close()
    assert numbers(mailbox) == list(range(72))


def test_the_rest_of_a_batch_is_taken_without_a_call_for_each() -> None:
    mailbox = SyncMailbox()
    mailbox.put(deltas(1, 5), [DELTA] * 5)
    mailbox.put([line(ITEM, 6)], [ITEM])
    mailbox.close()
    first = mailbox.get()
    assert first is not None and first.method == DELTA
    assert [each.params["number"] for each in mailbox.current] == [2, 3, 4, 5]
    assert numbers(mailbox) == [6]


def test_without_room_deltas_give_way_and_are_counted_and_items_stay() -> None:
    mailbox = SyncMailbox()
    room = sum(map(len, deltas(0, 29)))
    with mock.patch("codex_app_server._core.mailbox.MAX_WAITING_BYTES", room):
        mailbox.put(deltas(0, 29), [DELTA] * 30)
        mailbox.put([*deltas(30, 79), line(ITEM, 80), *deltas(81, 83)], [*[DELTA] * 50, ITEM, *[DELTA] * 3])
        taken = [mailbox.get() for _ in range(30)]
        mailbox.put([line(ITEM, 84)], [ITEM])
    mailbox.close()
    assert [each.params["number"] for each in taken if each is not None] == list(range(30))
    rest: list[Notification] = []
    while (notification := mailbox.get()) is not None:
        rest.append(notification)
    told = [(each.method, each.params.get("count", each.params.get("number"))) for each in rest]
    assert told == [("sdk/deltas/dropped", 50), (ITEM, 80), ("sdk/deltas/dropped", 3), (ITEM, 84)]


@pytest.mark.parametrize("readers", [2, 5])
def test_of_many_readers_each_notification_goes_to_one(readers: int) -> None:
    mailbox = SyncMailbox()
    found: list[list[int]] = [[] for _ in range(readers)]

    def read(into: list[int]) -> None:
        while (notification := mailbox.get(20)) is not None:
            into.append(notification.params["number"])

    threads = [threading.Thread(target=read, args=(into,)) for into in found]
    for thread in threads:
        thread.start()
    for first in range(0, 5000, 10):
        if first % 20:
            mailbox.put(deltas(first, first + 9), [DELTA] * 10)
        else:
            mailbox.put([line(ITEM, number) for number in range(first, first + 10)])
    mailbox.close()
    for thread in threads:
        thread.join(30)
    assert sorted(number for into in found for number in into) == list(range(5000))
    assert all(into == sorted(into) for into in found)
