"""The ``twohop`` command, one file a subcommand."""
