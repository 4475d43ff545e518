"""The commands. ``cli/X.py`` is ``jukebox X``; ``jukebox_jax/__main__.py`` finds and calls it.

A command is a module with ``HELP`` (one line), ``EXAMPLE`` (a command line that works), ``add_arguments(parser)`` and
``main(args) -> int | None``. Adding the file adds the command.
"""
