"""`replug evaluate lm`: placeholder of the scaffold, to be replaced."""


def lm() -> None:
    """Placeholder."""
