"""The one exception a user is meant to read."""


class UserError(Exception):
    """Something the user can mend: what is wrong, where, and what to do; all else is a crash."""
