"""`python -m ossicle.cli`."""

from .main import main

main()
