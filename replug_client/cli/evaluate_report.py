"""`replug evaluate report`: placeholder of the scaffold, to be replaced."""


def report() -> None:
    """Placeholder."""
