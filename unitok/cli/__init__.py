"""The command line: finds a command, reads its options, runs it."""
