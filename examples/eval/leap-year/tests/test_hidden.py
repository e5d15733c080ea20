import calendar
import unittest

from calendar_rules import is_leap


class Test(unittest.TestCase):
    def test_every_year_is_right(self):
        for year in range(1583, 2500):
            self.assertEqual(is_leap(year), calendar.isleap(year), year)
