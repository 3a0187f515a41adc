"""The one exception a user is meant to read."""


class UserError(Exception):
    """Something the user can mend: the message says what is wrong, where, and what to do.

    The command line prints the message alone and exits with code 2. Everything else that is
    raised is a crash (exit code 1) and shows its traceback.
    """
