"""Examples, an index and a supervisor in; a tuned retriever out."""
