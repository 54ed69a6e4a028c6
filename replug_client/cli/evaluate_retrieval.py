"""`replug evaluate retrieval`: placeholder of the scaffold, to be replaced."""


def retrieval() -> None:
    """Placeholder."""
