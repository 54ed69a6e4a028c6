"""Retrievers in, numbers out."""
