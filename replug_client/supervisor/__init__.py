"""(passage, query, continuation) in, log-likelihoods out."""
