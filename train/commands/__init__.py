"""The command line `toklab`: one thin file a command. The only place that knows all wings.

`cli.py` is where the process begins, `command_line.py` finds the command and turns errors into one line and an exit
code.
"""
