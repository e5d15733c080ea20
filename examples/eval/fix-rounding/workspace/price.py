"""Prices in euros."""


def total(prices, quantity):
    """The total of all prices times quantity, rounded to cents, half a cent up."""
    return round(sum(prices) * quantity, 2)
