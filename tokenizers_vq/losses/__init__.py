"""What a tokenizer is trained for."""
