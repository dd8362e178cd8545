"""Makes tokenizers and models: the engine (`loop`), the two trainers (`tokenizer`, `generator`) and `encode`."""
