import unittest

from price import total


class Test(unittest.TestCase):
    def test_half_a_cent_goes_up(self):
        self.assertEqual(float(total([0.125], 1)), 0.13)
