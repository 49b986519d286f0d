"""`python -m kubetwin`: the same as the `kubetwin` command."""

from kubetwin.cli import main

main()
