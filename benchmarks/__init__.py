"""Every speed claim, as a command that prints a ratio measured in one run."""
