import unittest

from intervals import merge


class Test(unittest.TestCase):
    def test_what_overlaps_or_touches_is_one(self):
        self.assertEqual(list(map(tuple, merge([(5, 7), (1, 3), (3, 4), (6, 9)]))), [(1, 4), (5, 9)])
        self.assertEqual(merge([]), [])
