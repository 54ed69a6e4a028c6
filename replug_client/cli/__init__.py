"""One command a file: parse, freeze the options, call the library."""
