def is_leap(year):
    """Whether a year of the Gregorian calendar is a leap year."""
    return year % 4 == 0
