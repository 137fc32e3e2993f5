"""`python -m bevel`."""

from bevel.cli import main

main()
