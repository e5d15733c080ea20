"""Facts about runs that must be alike for these to become one. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from ..configuration.effective import differences, in_words
from ..dataset import Shard
from ..store.reader import MERGED, SHARD, VARIANTS


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about one run. `shards` are the numbers of those that it holds, of `count`.

    `effective` has the configuration of each variant, those that the last command has left out as well, `""` for a run
    without; it is empty as long as none was read.
    """

    path: str
    shards: tuple[int, ...] = ()
    count: int | None = None
    is_merged: bool = False
    is_started: bool = False
    fingerprint: str | None = None
    content: str | None = None
    scorers: Any = None
    epochs: int | None = None
    currency: str | None = None
    effective: dict[str, Any] = {}

    @classmethod
    def of(
        cls,
        path: str,
        notes: Mapping[str, Any],
        configs: Sequence[Mapping[str, Any]],
        merges: Sequence[Mapping[str, Any]] = (),
    ) -> Facts:
        """Collect them of what a run stores: its notes, and the configurations of its launches and of its merges.

        A merged run may be gone on with for some samples of the dataset only: its dataset is that of its last merge.
        """
        merged = notes.get(MERGED)
        shard = None if notes.get(SHARD) is None else Shard.parse(notes[SHARD])
        last = merges[-1] if merged and merges else configs[-1] if configs else {}
        dataset = last.get("dataset") or {}
        return cls(
            path=path,
            shards=tuple(merged["shards"]) if merged else () if shard is None else (shard.index,),
            count=merged["of"] if merged else None if shard is None else shard.count,
            is_merged=bool(merged),
            is_started=bool(configs),
            fingerprint=dataset.get("fingerprint"),
            content=dataset.get("content"),
            scorers=last.get("scorers"),
            epochs=((last.get("arguments") or {}).get("request") or {}).get("epochs"),
            currency=last.get("currency"),
            effective=_by_name(notes.get(VARIANTS)) or next(filter(None, map(_effective, reversed(configs))), {}),
        )


def _by_name(variants: Sequence[Mapping[str, Any]] | None) -> dict[str, Any]:
    return {each["name"]: each.get("effective") for each in variants or ()}


def _effective(config: Mapping[str, Any]) -> dict[str, Any]:
    if config.get("variants"):
        return _by_name(config["variants"])
    return {"": config["effective"]} if config.get("effective") else {}


def problems(sources: Sequence[Facts], target: Facts | None, *, allow_missing: bool) -> list[str]:
    """List why the runs cannot become one, each with its remedy; `target`: a merge they are added to."""
    found = [problem for each in sources for problem in _alone(each)]
    if found:
        return found
    known = [*([] if target is None else [target]), *sources]
    first = known[0]
    for other in known[1:]:
        found += _unlike(first, other)
    if found:
        return found
    missing = missing_of(known)
    if missing and not allow_missing:
        names = ", ".join(f"{index}/{first.count}" for index in missing[:10])
        more = f" and {len(missing) - 10:,} more" if len(missing) > 10 else ""
        what, them = (f"shard {names} is", "it") if len(missing) == 1 else (f"shards {names}{more} are", "them")
        found.append(
            f"{what} missing: name all directories, or merge without {them} by --allow-missing and add {them} later"
        )
    return found


def missing_of(known: Sequence[Facts]) -> list[int]:
    """Return the numbers of the shards that none of the runs holds."""
    there = {index for each in known for index in each.shards}
    return [index for index in range(1, (known[0].count or 0) + 1) if index not in there]


def _alone(source: Facts) -> Iterator[str]:
    if source.is_merged:
        yield f"{source.path} is merged itself: name its shards, or give it as -o to add others to it"
    elif not source.shards:
        yield f"{source.path} is no shard: its run had no --shard; name directories of batch --shard I/N"
    elif not source.is_started:
        yield f"{source.path} was never started: run its command again, or leave it out and give --allow-missing"


def _unlike(first: Facts, other: Facts) -> Iterator[str]:
    both = f"{first.path} and {other.path}"
    if first.count != other.count:
        yield (
            f"{both} are of {first.count} and {other.count} shards, and divide the dataset differently: merge runs of "
            "one number of shards"
        )
        return
    if first.fingerprint != other.fingerprint:
        yield (
            f"{both} are of other samples: the dataset, or the selection of its samples, was changed between them; run "
            "the commands of all shards again with the same dataset, which goes on with what they have"
        )
    elif None not in (first.content, other.content) and first.content != other.content:
        yield (
            f"{both} have samples with other targets, scorers, limits or metadata: the dataset was changed between "
            "them; run the commands of all shards again with the same dataset, which scores again what it must"
        )
    if first.epochs != other.epochs:
        yield f"{both} have {first.epochs} and {other.epochs} epochs; run one again with the --epochs of the other"
    if first.scorers != other.scorers:
        yield f"{both} have other scorers; run one of them again with the scorers of the other, which scores it again"
    if first.currency != other.currency:
        yield f"{both} have costs in {first.currency} and {other.currency} (None: no prices); use one --prices file"
    if not first.effective or not other.effective:
        return
    if set(first.effective) != set(other.effective):
        names = (", ".join(filter(None, sorted(each.effective))) or "none" for each in (first, other))
        yield "{} have other variants, {} and {}; run one of them with the variants of the other".format(both, *names)
        return
    for name, effective in first.effective.items():
        another = other.effective[name]
        said = in_words(differences(effective, another)).replace(", now ", " and ") if effective and another else ""
        if said:
            of_variant = f" of variant {name!r}" if name else ""
            yield (
                f"{both} were run with other configurations{of_variant} ({said}); run one of them again with the "
                "configuration of the other and --changed rerun"
            )
