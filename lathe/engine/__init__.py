"""Tokens in, tokens out: many requests share one decoder and one pool of cache pages; knows no text and no file."""
