"""The trunk: who sees whom (`rule`), what was seen before (`cache`), and the transformer (`native`)."""
