"""Compare the base and the tuned retriever side by side: `replug compare`. (A command, not a test.)"""

from replug_client.cli.app import run

if __name__ == "__main__":
    run("compare")
