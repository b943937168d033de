"""Errors that the user of a job can mend."""


class UserError(Exception):
    """Base of all such errors: a job ends with the message alone, which says what is wrong and what would be right."""


class StorageError(UserError, OSError):
    """Storage cannot be reached or refuses; the message names the URI and what the system or server said."""
