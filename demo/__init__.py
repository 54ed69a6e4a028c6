"""What the demo needs: a corpus built on the spot, and a small code LM that stands in ``demo/lm``."""
