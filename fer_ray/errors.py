"""What the user of a job can mend."""


class UserError(Exception):
    """Of all such errors: a job ends with its message alone, which says what is wrong and what would be right."""
