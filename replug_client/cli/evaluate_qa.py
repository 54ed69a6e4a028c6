"""`replug evaluate qa`: placeholder of the scaffold, to be replaced."""


def qa() -> None:
    """Placeholder."""
