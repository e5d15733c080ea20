import unittest

from price import total


class Test(unittest.TestCase):
    def test_half_a_cent_goes_up(self):
        for price, quantity, expected in ((0.125, 1, 0.13), (0.135, 1, 0.14), (1.005, 1, 1.01), (0.125, 2, 0.25)):
            self.assertEqual(float(total([price], quantity)), expected)

    def test_sums_are_exact(self):
        self.assertEqual(float(total([0.1, 0.2], 1)), 0.3)
        self.assertEqual(float(total([], 3)), 0)
