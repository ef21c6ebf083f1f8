"""One file per command; each holds a click command named ``command``. A new file is a new command."""
