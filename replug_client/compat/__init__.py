"""Other projects' names for what replug does, so that code written for them trains a retriever with it."""
