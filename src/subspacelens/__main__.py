"""`python -m subspacelens`: the command line."""

from .cli import main

main()
