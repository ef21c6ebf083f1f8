"""``python -m surgeon_cli``."""

from .main import main

main()
