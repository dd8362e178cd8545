"""How a run saves: while it trains on, from copies (`saver.py`, `copies.py`)."""
