"""`report.html`: a training run as a page that needs nothing but a browser."""
