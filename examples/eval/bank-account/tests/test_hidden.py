import unittest

from account import Account, InsufficientFunds


class Test(unittest.TestCase):
    def test_money_comes_and_goes(self):
        account = Account()
        account.deposit(500)
        account.withdraw(200)
        self.assertEqual(account.balance, 300)

    def test_there_is_no_more_than_there_is(self):
        account = Account()
        account.deposit(100)
        with self.assertRaises(InsufficientFunds):
            account.withdraw(101)
        self.assertEqual(account.balance, 100)
