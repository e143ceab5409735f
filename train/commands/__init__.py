"""The command line `toklab`: one thin file a command. The only place that knows all wings.

The process begins in `cli.py`. `command_line.py` lists the commands, imports the one that is called, and turns errors
into one line and an exit code. `options.py` reads options, `terminal.py` shows progress.
"""
