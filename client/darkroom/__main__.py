"""`python -m darkroom` is the command `darkroom`."""

from darkroom.cli import main

main()
