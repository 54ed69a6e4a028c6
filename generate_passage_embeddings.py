"""Embed the passages of a corpus; the same as `replug embed`."""

from replug_client.cli.app import run

if __name__ == "__main__":
    run("embed")
