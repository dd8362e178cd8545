"""The tokenizers: a file for each kind of them."""
