"""The one exception that reaches a user as one line."""

from __future__ import annotations


class AlignvecError(Exception):
    """Something a user can mend: what is wrong, with the file or field, and what to do.

    The command line prints the message on one line and exits with 1; a traceback only with
    ``--debug``.
    """
