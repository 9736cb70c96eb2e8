"""The command line: above all rooms, and nothing heavy imported before a command needs it."""
