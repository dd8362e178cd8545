"""How pictures that are given are read where they are not read as codes: an encoder and a connector."""
