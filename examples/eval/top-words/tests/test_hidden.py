import unittest

from top import top


class Test(unittest.TestCase):
    def test_ties_come_by_alphabet(self):
        self.assertEqual(top(["d", "c", "b", "a", "d"], 3), ["d", "a", "b"])
        self.assertEqual(top(list("fedcba"), 6), list("abcdef"))
