"""`python -m replug_client` is `replug`."""

from replug_client.cli.app import main

if __name__ == "__main__":
    main()
