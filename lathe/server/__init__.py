"""HTTP over one engine: what clients of many kinds send becomes requests, and tokens what each of them expects."""
