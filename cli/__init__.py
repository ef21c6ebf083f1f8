"""The command line. Installed as ``surgeon_cli``; importing it imports no torch."""
