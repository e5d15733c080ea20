import unittest

from words import count_words


class Test(unittest.TestCase):
    def test_an_example(self):
        self.assertEqual(count_words("The cat and the dog."), {"the": 2, "cat": 1, "and": 1, "dog": 1})
