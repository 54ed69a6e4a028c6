"""Every speed claim, as a command that prints a ratio measured in one run."""

import os

# Bars that libraries draw would fall into the tables; tqdm reads this once, when it is first imported.
os.environ.setdefault("TQDM_DISABLE", "1")
