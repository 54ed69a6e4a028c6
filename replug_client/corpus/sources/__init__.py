"""Data sets as they are published, in; passages, documents and judgements that replug reads, out."""
