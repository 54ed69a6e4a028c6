"""replug: tune a dense retriever to a black-box language model (REPLUG LSR) and measure what it gives."""

__version__ = "0.1.0"
