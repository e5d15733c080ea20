import unittest

from words import count_words


class Test(unittest.TestCase):
    def test_punctuation_at_both_ends_goes_and_inside_stays(self):
        self.assertEqual(count_words('"Well," she said: (don\'t!)'), {"well": 1, "she": 1, "said": 1, "don't": 1})

    def test_nothing_is_no_word(self):
        self.assertEqual(count_words(" -- "), {})
