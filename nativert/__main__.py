"""`python -m nativert` is the command `nativert`."""

from nativert.cli.main import main

main()
