"""Questions in, numbers out: answers, choices, whether retrieval held the answer, and where it went wrong."""
