"""The command `darkroom`.

Its modules import little, so that `darkroom --help` is fast: a command imports what it works with
when it is called.
"""


def main() -> None:
    """Run the command line and end the process with its exit status."""
    from darkroom.cli._app import command

    command()(prog_name="darkroom")
