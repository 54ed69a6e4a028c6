"""Passages of code, and the beginning of what they help to go on with: for every kind of supervisor the same."""

from __future__ import annotations

PASSAGES = (
    "def add(a, b):\n    return a + b\n",
    "import os\n\ndef read(path):\n    with open(path) as f:\n        return f.read()\n",
    "class Stack:\n    def push(self, item):\n        self.items.append(item)\n",
)
PREFIX = "def write(path, text):\n    "
SIMILARITIES = (0.5, 0.4, 0.1)
