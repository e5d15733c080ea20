"""Prices of tokens, tables of prices, the cost of model requests, and what has no price."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from codex_batch.dataset import Sample
from codex_batch.display import summary
from codex_batch.rules.bill import Answering, Bill, tokens_of
from codex_batch.rules.limits import Reached, RunLimits, RunMeter
from codex_batch.rules.progress import Progress, figures
from codex_batch.rules.retry import Outcome
from codex_batch.run.price_check import Models
from codex_batch.scoring import Scorers
from codex_pool.litellm_prices import find_prices, parse_table, read_table
from codex_pool.prices import Price, Prices, PricesError, UnpricedError, amount, parse_prices

TOML = """
[models.m]
input = 1.0
cached_input = 0.1
cache_write = 1.25
output = 10.0
reasoning = 20.0
web_search = 0.01

[[models.m.above]]
input_tokens = 200000
input = 2.0
output = 15.0

[models.m.service_tiers.priority]
input = 3.0
output = 30.0

[models.plain]
input = 1.0
output = 2.0
"""
# A table in the format of LiteLLM's, made up.
TABLE: dict[str, Any] = {
    "sample_spec": {"input_cost_per_token": 0.0, "output_cost_per_token": 0.0, "mode": "one of chat, responses"},
    "coder": {
        "litellm_provider": "openai",
        "mode": "responses",
        "input_cost_per_token": 1e-06,
        "output_cost_per_token": 1e-05,
        "cache_read_input_token_cost": 1e-07,
        "input_cost_per_token_priority": 2e-06,
        "output_cost_per_token_priority": 2e-05,
        "cache_read_input_token_cost_priority": 2e-07,
        "input_cost_per_token_batches": 5e-07,
        "output_cost_per_token_batches": 5e-06,
        "input_cost_per_token_above_200k_tokens": 2e-06,
        "output_cost_per_token_above_200k_tokens": 1.5e-05,
        "cache_creation_input_token_cost_above_1hr": 6e-06,
    },
    "azure/coder": {"input_cost_per_token": 3e-06, "output_cost_per_token": 3e-05},
    "writer": {
        "input_cost_per_token": 3e-06,
        "output_cost_per_token": 1.5e-05,
        "cache_creation_input_token_cost": 3.75e-06,
        "output_cost_per_reasoning_token": 3e-05,
        "search_context_cost_per_query": {"search_context_size_medium": 0.01},
    },
    "tiered": {
        "tiered_pricing": [
            {"range": [0, 32000], "input_cost_per_token": 1e-06, "output_cost_per_token": 4e-06},
            {"range": [32000, 128000], "input_cost_per_token": 2e-06, "output_cost_per_token": 8e-06},
        ]
    },
    "painter": {"input_cost_per_image": 0.04},
}
M = 1_000_000


def used(given: int = 0, made: int = 0, cached: int = 0, written: int = 0, reasoned: int = 0) -> dict[str, int]:
    return {
        "input_tokens": given,
        "cached_input_tokens": cached,
        "cache_write_input_tokens": written,
        "output_tokens": made,
        "reasoning_output_tokens": reasoned,
        "total_tokens": given + made,
    }


def test_cache_writes_sizes_tiers_and_reasoning_have_prices_of_their_own() -> None:
    price = parse_prices(TOML, "p").price("m")
    assert price.cost(used(100_000, cached=40_000, written=10_000)) == pytest.approx(0.05 + 0.004 + 0.0125)
    assert price.cost(used(0, 100_000, reasoned=40_000)) == pytest.approx(0.6 + 0.8)
    assert price.cost(used(200_000)) == pytest.approx(0.2)
    assert price.cost(used(200_001)) == pytest.approx(0.400002)
    prices = parse_prices(TOML, "p")
    for tier in ("priority", "fast"):
        assert prices.price("m", tier=tier).cost(used(100_000)) == pytest.approx(0.3)
    for tier in (None, "default", "auto"):
        assert prices.price("m", tier=tier).cost(used(100_000)) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("model", "tier", "usage", "requests", "why"),
    [
        ("other", None, used(1), 1, "no price of model 'other'"),
        (None, None, used(1), 1, "no price of a model that is not known"),
        ("m", "flex", used(1), 1, "no price of model 'm' at service tier 'flex'"),
        ("plain", None, used(10, written=1), 1, "no price of cache writes"),
        ("m", None, used(300_000, cached=0, written=1), 1, "cache writes of requests with more than 200,000 input"),
        ("m", "priority", used(300_000), 1, "no price of input of requests with more than 200,000 input tokens"),
        ("m", None, used(300_000), None, "more than 200,000 input tokens cannot be told apart"),
    ],
)
def test_a_cost_without_its_price_is_unknown(
    model: str | None, tier: str | None, usage: dict[str, int], requests: int | None, why: str
) -> None:
    with pytest.raises(UnpricedError, match=why):
        parse_prices(TOML, "p").price(model, tier=tier).cost(usage, requests=requests)


def test_what_is_wrong_with_sizes_and_tiers_is_said() -> None:
    text = (
        "[models.m]\ninput = 1\noutput = 1\nservice_tiers = 1\n[[models.m.above]]\ninput = 1\noutput = 1\n"
        "[models.n]\ninput = 1\noutput = 1\nabove = 1\n[models.n.service_tiers.flex]\ninput = -1\noutput = 1\n"
    )
    with pytest.raises(PricesError) as caught:
        parse_prices(text, "p")
    assert caught.value.problems == [
        "p: models.m: service_tiers: is 1; expected a table for each service tier",
        "p: models.m: above[0]: input_tokens: is None; expected a whole number above 0",
        "p: models.n: above: is 1; expected tables, each with input_tokens",
        "p: models.n: service_tiers.flex: input: is -1; expected a price of at least 0",
    ]


# The table of LiteLLM.


def test_a_copy_of_the_table_of_litellm_is_read(tmp_path: Path) -> None:
    path = tmp_path / "copy.json"
    path.write_text(json.dumps(TABLE))
    prices = find_prices(f"litellm:{path}")
    assert prices.currency == "USD" and str(path) in prices.source
    assert set(prices.models) == {"coder", "azure/coder", "writer", "tiered"}
    coder = prices.price("coder", "openai")
    assert coder.cost(used(100_000, 10_000, cached=50_000)) == pytest.approx(0.05 + 0.005 + 0.1)
    assert coder.cost(used(300_000)) == pytest.approx(0.6)
    assert prices.price("coder", "azure").cost(used(M)) == pytest.approx(3.0)
    assert prices.price("coder", tier="fast").cost(used(100_000, cached=100_000)) == pytest.approx(0.02)
    writer = prices.price("writer")
    assert writer.cost(used(M, 100, written=M, reasoned=100)) == pytest.approx(3.75 + 0.003)
    assert writer.web_search == 0.01
    tiered = prices.price("tiered")
    assert tiered.cost(used(32_000)) == pytest.approx(0.032) and tiered.cost(used(33_000)) == pytest.approx(0.066)
    for model, tier, usage in (
        ("coder", "batches", used(1)),
        ("coder", None, used(1, written=1)),
        ("coder", None, used(300_000, cached=1)),
        ("coder", "priority", used(300_000)),
        ("azure/coder", None, used(2, cached=1)),
        ("painter", None, used(1)),
        ("sample_spec", None, used(1)),
    ):
        with pytest.raises(UnpricedError):
            prices.price(model, tier=tier).cost(usage)


def test_a_table_that_is_none_is_refused(tmp_path: Path) -> None:
    for text, problem in ((b"{", "not JSON"), (b"[1]", "expected an object"), (b'{"a": {}}', "no entry has")):
        with pytest.raises(PricesError, match=problem):
            parse_table(text, "t")
    with pytest.raises(PricesError, match="No such file"):
        read_table(tmp_path / "none")
    with pytest.raises(PricesError, match="the file is missing"):
        find_prices("litellm:")


@pytest.mark.parametrize("ending", ["_backup.json", ".json"])
def test_an_installed_litellm_is_found_and_not_imported(tmp_path: Path, ending: str) -> None:
    name = f"model_prices_and_context_window{ending}"
    package, metadata = tmp_path / "litellm", tmp_path / "litellm-9.9.9.dist-info"
    package.mkdir()
    metadata.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')\n")
    (package / name).write_text(json.dumps(TABLE))
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: litellm\nVersion: 9.9.9\n")
    (metadata / "RECORD").write_text("litellm/__init__.py,,\n")
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from codex_pool.litellm_prices import find_prices\n"
        "found = find_prices('litellm')\n"
        "print(found.source, 'coder' in found.models, 'litellm' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=50)
    assert done.stdout.split() == ["litellm", "9.9.9:", str(package / name), "True", "False"], done.stderr


def test_no_litellm_or_one_without_its_table_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.MetadataPathFinder.path", [], raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(PricesError, match=r"no litellm is installed for this Python; pip install litellm, or give"):
        find_prices("litellm")
    (tmp_path / "litellm-1.dist-info").mkdir()
    (tmp_path / "litellm-1.dist-info" / "METADATA").write_text("Name: litellm\nVersion: 1\n")
    with pytest.raises(PricesError, match="litellm 1 is installed without"):
        find_prices("litellm")


# Bills.


def reported(**tokens: int) -> dict[str, int]:
    usage = used(**tokens)
    wire = {"cacheWriteInputTokens": "cache_write_input_tokens", "cachedInputTokens": "cached_input_tokens"}
    wire |= {"inputTokens": "input_tokens", "outputTokens": "output_tokens", "totalTokens": "total_tokens"}
    wire |= {"reasoningOutputTokens": "reasoning_output_tokens"}
    return {name: usage[ours] for name, ours in wire.items()}


def test_each_request_is_priced_by_its_own_size() -> None:
    bill = Bill(parse_prices(TOML, "p"), Answering("m"))
    assert bill.cost is None and bill.unpriced is None
    first, second = tokens_of(reported(given=150_000)), tokens_of(reported(given=400_000))
    bill.used(first, first)
    # The same report again is no request.
    bill.used(first, first)
    bill.used(second, tokens_of(reported(given=250_000)))
    assert bill.cost == pytest.approx(0.15 + 0.5)
    bill.used(tokens_of(reported(given=700_000)), tokens_of(reported(given=50_000)))
    assert bill.cost is None and bill.unpriced is not None and "cannot be told apart" in bill.unpriced
    assert tokens_of({**reported(given=1), "cacheWriteInputTokens": 1})["cache_write_input_tokens"] == 1
    older = reported(given=1)
    del older["cacheWriteInputTokens"]
    assert tokens_of(older)["cache_write_input_tokens"] == 0


def test_a_model_that_another_takes_the_place_of_is_paid_until_then() -> None:
    prices = parse_prices(TOML, "p")
    bill = Bill(prices, Answering("m"))
    bill.used(used(100_000), used(100_000))
    bill.rerouted("plain")
    bill.used(used(200_000, 100_000), used(100_000, 100_000))
    assert bill.cost == pytest.approx(0.1 + 0.1 + 0.2)
    bill.rerouted("else")
    bill.used(used(200_001, 100_000), used(1))
    assert bill.cost is None and bill.unpriced == "no price of model 'else'"


def test_sub_agents_searches_and_images_count() -> None:
    prices = parse_prices(TOML, "p")
    bill = Bill(prices, Answering("m"))
    bill.used(used(100_000), used(100_000))
    bill.used_by_agent(used(100_000), None)
    bill.used_by_agent(used(100_000), "plain")
    bill.searched(2)
    assert bill.cost == pytest.approx(0.1 + 0.1 + 0.1 + 0.02)
    bill.made_image()
    assert bill.cost is None and bill.unpriced == "no price of an image"
    plain = Bill(prices, Answering("plain"))
    plain.used(used(1), used(1))
    plain.searched(1)
    assert plain.cost is None and plain.unpriced == "no price of a web search"
    nothing = Bill(None, Answering("m"))
    nothing.used(used(1), used(1))
    assert nothing.cost is None and nothing.unpriced is None


# Limits and words.


def test_an_unknown_cost_is_never_nothing_to_a_limit() -> None:
    def meter(**spent: Any) -> RunMeter:
        return RunMeter(RunLimits(cost=1.0), 0.0, **spent)

    run = meter()
    run.used(10, 0.4)
    run.used(10, None)
    assert run.reached(0.0) is None
    run.used(10, 0.3)
    assert run.reached(0.0) == Reached(
        "cost", "the run cost 1.10, with 1 of unknown cost counted as the dearest; its limit is 1.00"
    )
    run = meter()
    run.used(10, None, unpriced="no price of model 'x'")
    assert run.reached(0.0) == Reached(
        "cost", "the cost of the run is unknown (no price of model 'x'); its limit is 1.00"
    )
    run = meter(unknown=2)
    assert run.reached(0.0) is None
    run.used(0, None)
    assert "no tokens were reported of 3 attempts" in (run.reached(0.0) or Reached("", "")).message
    run = RunMeter(RunLimits(cost=1e-6), 0.0)
    run.used(1, 2e-6)
    assert run.reached(0.0) == Reached("cost", "the run cost 0.0000020; its limit is 0.0000010")


def test_small_amounts_are_not_shown_as_nothing() -> None:
    shown = [amount(value) for value in (0.0, 0.000004, 0.0123, 0.9949, 0.999, 1234.5, None)]
    assert shown == ["0.00", "0.0000040", "0.0123", "0.9949", "1.00", "1,234.50", "unknown"]
    assert amount(0.5, "EUR") == "0.5000 EUR" and amount(None, "EUR") == "unknown"


def test_a_display_says_what_it_does_not_know() -> None:
    progress = Progress(total=2)
    progress.turn_ended(Outcome("completed", turn_id="t", usage=used(1)))
    assert dict(summary.summary(_none(), progress, 1.0))["cost"] == "unknown: no prices; name a table with --prices"
    progress = Progress(total=3, currency="USD")
    progress.turn_ended(Outcome("failed"))
    progress.turn_ended(Outcome("completed", turn_id="t", cost=0.5))
    assert "0.5000 USD" in figures(progress, 1.0, ", ")
    progress.turn_ended(Outcome("lost", turn_id="t"))
    assert "cost unknown, at least 0.5000 USD" in figures(progress, 1.0, ", ")
    said = dict(summary.summary(_none(), progress, 1.0))["cost"]
    assert said == "unknown: at least 0.5000 USD; nothing is known of 1 attempt or question of a judge"


def _none() -> dict[str, int]:
    return summary.count({})


def test_models_of_samples_and_judges_are_looked_for_by_name() -> None:
    prices = Prices("USD", {"priced": Price(1, 1, 1), "azure/far": Price(1, 1, 1)})
    scorers = Scorers(["exact", {"type": "judge", "model": "strict"}])
    models = Models()
    for sample in (
        Sample(id="a", prompts=("x",), model="priced", target="x"),
        Sample(id="b", prompts=("x",), model="far", target="x"),
        Sample(id="c", prompts=("x",), model="dear", target="x"),
        Sample(id="d", prompts=("x",), target="x"),
    ):
        models.observe(sample, scorers)
    assert models.without_price(prices) == [
        "no price of model 'strict', which the judge of sample a asks for",
        "no price of model 'dear', which sample c asks for",
    ]
    named = Models("dear")
    named.observe(Sample(id="d", prompts=("x",)), Scorers())
    assert named.without_price(prices) == ["no price of model 'dear', which sample d asks for"]
    assert named.without_price(Prices("USD", {"*": Price(1, 1, 1)})) == []
