"""The command line, one subject per file. A command imports what it needs when it runs: `--help` answers at once."""
