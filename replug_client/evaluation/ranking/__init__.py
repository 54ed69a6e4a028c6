"""Retrievers against judgements: nDCG, reciprocal rank, recall and their like, with their certainty."""
