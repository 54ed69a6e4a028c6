"""Text in, vectors and neighbours out."""
