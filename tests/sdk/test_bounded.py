"""Dictionaries with a limit."""

from __future__ import annotations

from codex_app_server._runtime.bounded import BoundedDict, bound


def test_the_oldest_entry_makes_room_however_one_is_added() -> None:
    entries: BoundedDict[str, int] = BoundedDict(2)
    entries["a"] = 1
    entries["b"] = 2
    entries["a"] = 3
    entries["c"] = 4
    assert dict(entries) == {"b": 2, "c": 4}, "another value for a key makes it no newer"
    assert entries.setdefault("d", 5) == 5 and dict(entries) == {"c": 4, "d": 5}
    entries.update({"e": 6, "f": 7})
    assert dict(entries) == {"e": 6, "f": 7}
    assert entries.pop("e") == 6 and entries.get("e") is None and len(entries) == 1


def test_a_limit_may_change() -> None:
    entries = dict.fromkeys(range(5))
    bound(entries, 3)
    assert list(entries) == [2, 3, 4]
    bound(entries, 9)
    assert len(entries) == 3
