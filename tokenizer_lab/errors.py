"""The one error type that is for people rather than for us."""


class UserError(ValueError):
    """A person's mistake: one line with the values, the rule and the remedy.

    `toklab` prints it without a traceback and exits with code 2. Everything that only a bug can cause is an `assert`.
    """
