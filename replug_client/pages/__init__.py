"""Self-contained HTML pages: markup that escapes, charts as inline SVG, one style."""
