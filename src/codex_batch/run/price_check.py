"""Check before a run begins that the models of its samples and judges have prices."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Protocol

from codex_app_server import AppServerError
from codex_pool.prices import Prices, UnpricedError

from ..configuration.answering import ask_who_answers
from ..configuration.defaults import Defaults
from ..dataset import Sample
from ..rules.bill import Answering
from ..scoring import Scorers
from ..store import RunDirectory, layout, shown_name
from .run_pools import RunClients
from .stopping import unless_stopped


class Ask(Protocol):
    """Finds out what answers on threads of a variant that ask for a model, or for none. Raises AppServerError."""

    def __call__(self, model: str | None, variant: str) -> Awaitable[Answering]: ...


class Models:
    """The models that are asked for, None being the configured one, and who asks for each first.

    `named`: the model that the configuration names for all that name none. `defaults`: what samples get that name none.
    """

    def __init__(self, named: str | None = None, defaults: Defaults | None = None) -> None:
        self._named = named
        self._defaults = defaults or Defaults()
        self._first: dict[tuple[str | None, str], str] = {}

    def observe(self, sample: Sample, scorers: Scorers) -> None:
        """Note the models of a sample and of its judges. Raises ScorerError."""
        # A stored sample has its variant.
        for variant in (sample.variant,) if sample.variant else self._defaults.names:
            of_variant = self._defaults.of(variant)
            # Only its own configuration may have another provider answer.
            key = (sample.model or of_variant.model, variant if of_variant.config else "")
            if key not in self._first:
                self._first[key] = f"sample {shown_name(sample.id, sample.epoch, variant)}"
        for model in judges(scorers.of(sample)):
            self._first.setdefault((model, ""), f"the judge of sample {shown_name(*sample.key)}")

    def without_price(self, prices: Prices) -> list[str]:
        """Problems with what is named: those models that no price is known of, from any provider."""
        return [
            f"no price of model {model!r}, which {who} asks for"
            for model, who in self._named_first()
            if model is not None and not prices.knows(model)
        ]

    def _named_first(self) -> Iterator[tuple[str | None, str]]:
        """Yield each model once, as far as one is named, and who asks for it first."""
        found: dict[str | None, str] = {}
        for (model, _), who in self._first.items():
            found.setdefault(model or self._named, who)
        yield from found.items()

    async def problems(self, prices: Prices, ask: Ask) -> list[str]:
        """Problems with all models, by asking what answers."""
        found = []
        for (model, variant), who in self._first.items():
            what = f"{who} asks for" if model is not None else "is the configured one"
            try:
                answering = await ask(model, variant)
                prices.price(*answering)
            except UnpricedError as error:
                found.append(f"{error}, which {what}")
            except AppServerError as error:
                found.append(f"no price: which model answers where {who} asks is not known: {error}")
        return found


def judges(scorers: Any) -> Iterator[str | None]:
    """The models that judges among scorers ask for; None is the configured one."""
    return (scorer.options.get("model") for scorer in scorers if scorer.needs_model)


class UnpricedRunError(Exception):
    """A run with a limit of money whose cost would not be known; the message names the missing prices."""

    def __init__(self, problems: list[str], source: str) -> None:
        self.problems = problems
        shown = "; ".join(problems)
        super().__init__(
            f"--run-cost: {shown}. Add the prices to {source or 'the table of --prices'}, or leave --run-cost out: "
            "without prices it would not hold"
        )


Warn = Callable[[str], None]


async def check(prices: Prices, models: Models, ask: Ask, *, limited: bool, warn: Warn) -> None:
    """Look for prices of all models. With a limit of money each must have one: raises UnpricedRunError; else warns."""
    problems = await models.problems(prices, ask)
    if problems and limited:
        raise UnpricedRunError(problems, prices.source)
    for problem in problems:
        warn(f"{problem}: its cost is unknown")


def asking(clients: RunClients, stopping: asyncio.Future[Any], directory: RunDirectory, defaults: Defaults) -> Ask:
    """Return what asks a pool, by a thread of each variant; it raises Stopped once `stopping` is done."""
    cwd = directory.file(layout.JUDGE)

    async def ask(model: str | None, variant: str) -> Answering:
        cwd.mkdir(exist_ok=True)
        codex, config = clients.of(variant).codex, defaults.of(variant).config
        return await unless_stopped(stopping, ask_who_answers(codex, model, cwd, config))

    return ask
