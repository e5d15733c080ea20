"""Numbers as people and models write them."""

from __future__ import annotations

import time

import pytest

from codex_batch.scoring.numerals import at_end, numbers, only, read, readable

WRITTEN = {
    "-$5": [-5],
    "$-5": [-5],
    "-US$5 or -USD 5": [-5, -5],
    "\u2212\u20ac1,200": [-1200],
    "\u20135": [-5],
    "10\u201312": [10, 12],
    "5-3": [5, 3],
    "x^{2}-3": [2, 3],
    r"\boxed{9{,}500}": [9500],
    r"$9\,500$ and 10,\!000": [9500, 10000],
    r"\boxed{\$1{,}234.50}": [1234.5],
    r"-\$5": [-5],
    "1,234,567.89": [1234567.89],
    "12,34,567": [1234567],
    "1,2345": [1, 2345],
    "1.234.567": [1234567],
    "1.234,56": [1234.56],
    "1 234,56 \u20ac": [1234.56],
    "1 000": [1, 0],
    "1\u202f234\u202f567,8": [1234567.8],
    "1'234.50": [1234.5],
    "1_000_000": [1e6],
    "12,50 \u20ac": [12.5],
    "\u20ac12,5": [12.5],
    "12,5 % or 1,5 EUR": [12.5, 1.5],
    "12,5": [12, 5],
    "[0,1]": [0, 1],
    "$1,2$": [1, 2],
    "50\\%": [50],
    "3/4": [0.75],
    "5 / 2": [2.5],
    "3/4/2023": [3, 4, 2023],
    "1/0": [1, 0],
    "1 1/2 cups": [1.5],
    "-1 1/2": [-1.5],
    r"2\frac{1}{2}": [2.5],
    r"-2\dfrac{1}{2}": [-2.5],
    r"-\frac{1}{2}": [-0.5],
    r"\frac12": [0.5],
    "\u00bd": [0.5],
    "1\u00bd": [1.5],
    r"2 \times 10^{-3}": [0.002],
    "2\u00d710\u2075": [2e5],
    "3 x 10^8": [3e8],
    "10^5": [1e5],
    "1e5 and -1.5E-3": [1e5, -0.0015],
    "1e999": [],
    "\uff12\uff15": [25],
}


@pytest.mark.parametrize("text", WRITTEN, ids=ascii)
def test_numbers_are_read_as_they_are_meant(text: str) -> None:
    assert numbers(text) == pytest.approx(WRITTEN[text])


def test_a_text_that_is_one_number() -> None:
    for text in ("9500", "9,500", "$9500.00", "9500 \u20ac", "$9500$", "USD 9,500"):
        found = only(text)
        assert found is not None and found.value == 9500
    assert only("5 apples") is None and only("4 5") is None and only("") is None


HOSTILE = (
    "1",
    "1,234",
    ",234",
    " 234",
    ".234",
    "\\frac{1",
    "1/",
    "-",
    "1e",
    "10^{",
    "1x10^",
    "$",
    "A",
    " ",
    "1,",
    "1.",
    "1,1 ",
    "\u2009123",
    ".,1",
    "1 1/",
)


@pytest.mark.parametrize("piece", HOSTILE, ids=ascii)
def test_the_time_is_linear_in_the_length(piece: str) -> None:
    def took_s(length: int) -> float:
        text = piece * (length // len(piece))
        began_at = time.process_time()
        numbers(text)
        return time.process_time() - began_at

    # Quadratic time would be 100 times as long, and minutes. The least of several: others use the caches too.
    assert min(took_s(100_000) for _ in range(3)) < 40 * max(min(took_s(10_000) for _ in range(3)), 0.01)


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "no number here",
        "word " * 40_000,
        "word " * 40_000 + "7",
        "7 " + "word " * 40_000,
        "word " * 30_000 + "1 3/4" + " word" * 30_000,
        "1" * 100_000 + " x" * 10_000,
        "x " * 10_000 + "1" * 100_000,
        "1,234.5 " * 20_000,
        "3/4/" * 30_000,
        "\\times " * 30_000 + "5",
        "5" + "\\frac{1}{2} " * 20_000,
        "x" * 65_530 + "12345678.25" + "y" * 65_530,
    ],
)
def test_the_number_at_an_end_is_that_of_the_whole_text(text: str, last: bool) -> None:
    found = read(readable(text))
    one = at_end(text, last=last)
    assert (one is None) == (not found)
    if one is not None:
        same = found[-1 if last else 0]
        assert (one.value, one.percent) == (same.value, same.percent)


def test_the_last_number_of_a_long_text_is_found_at_once() -> None:
    began = time.process_time()
    assert at_end("1 2 3 " * 4_000_000, last=True) is not None
    assert time.process_time() - began < 2
