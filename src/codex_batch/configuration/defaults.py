"""Defaults of a run: what its samples get that name no model, effort or sandbox themselves. Pure.

In a run with variants model and effort are those of the sample's variant, else those of the run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from ..dataset import Sample
from .variants import Variant, VariantsError


class Defaults:
    """Defaults by variant. `sandbox` is the run's, and that of all of its variants."""

    def __init__(
        self,
        model: str | None = None,
        effort: str | None = None,
        sandbox: str | None = None,
        variants: Iterable[Variant] = (),
    ) -> None:
        self.sandbox = sandbox
        self._of_run = Variant(name="", model=model, effort=effort)
        self.variants: Mapping[str, Variant] = {each.name: each for each in variants}
        """The variants by name, in order; empty in a run without variants."""

    @property
    def names(self) -> tuple[str, ...]:
        """The variants that each sample is run in: `""` alone in a run without variants."""
        return tuple(self.variants) or ("",)

    def of(self, name: str) -> Variant:
        """Return a variant by its name; that of `""` has the run's own model and effort."""
        return self.variants[name] if name else self._of_run

    def each(self) -> list[Variant]:
        """Return what `of` returns for each of `names`, in order."""
        return [self.of(name) for name in self.names]

    def products(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """Yield each sample once for each variant: all variants of one beside each other, so that all see one hour."""
        if not self.variants:
            yield from samples
            return
        for sample in samples:
            for name in self.variants:
                yield msgspec.structs.replace(sample, variant=name)

    def filled(self, sample: Sample) -> Sample:
        """Return the sample with the model, effort and sandbox that it is run with. Its own ones are kept."""
        variant = self.of(sample.variant)
        model, effort = sample.model or variant.model, sample.effort or variant.effort
        sandbox = sample.sandbox or self.sandbox
        if (model, effort, sandbox) == (sample.model, sample.effort, sample.sandbox):
            return sample
        return msgspec.structs.replace(sample, model=model, effort=effort, sandbox=sandbox)

    def problems(self, sample: Sample) -> list[tuple[str, str]]:
        """List the fields of a sample that would take the place of what variants compare, with what is wrong."""
        found = []
        for field in ("model", "effort"):
            own = getattr(sample, field)
            named = [each.name for each in self.variants.values() if getattr(each, field) is not None]
            if own is not None and named:
                found.append(
                    (
                        field,
                        f"{own!r} would be used in place of that of the variants, such as {named[0]!r}, and their "
                        f"comparison would be false; leave it out of the sample, or the {field} out of the variants",
                    )
                )
        return found


def stored(variant: Variant, effective: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A variant as the run keeps it; `restored` makes it again."""
    return {**msgspec.to_builtins(variant), "effective": effective}


def restored(found: Iterable[Mapping[str, Any]]) -> tuple[Variant, ...]:
    """The variants that `stored` was called with. Raises VariantsError for what cannot be read."""
    try:
        return tuple(msgspec.convert({k: v for k, v in each.items() if k != "effective"}, Variant) for each in found)
    except msgspec.ValidationError as error:
        raise VariantsError([f"the variants that the run has stored cannot be read: {error}"]) from None
