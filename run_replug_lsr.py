"""Tune a retriever to a supervisor with REPLUG LSR; the same as `replug train`."""

from replug_client.cli.app import run

if __name__ == "__main__":
    run("train")
