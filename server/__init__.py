"""The supervisor service: installs, starts and watches vLLM; knows nothing of the client's insides."""
