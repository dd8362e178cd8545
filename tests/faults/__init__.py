"""The trial: commands are killed, their files damaged, their options given nonsense, their disk filled.

`make faults` runs all of it and prints a table; test_faults.py is the short form. What counts is what a command leaves
behind, not what it says: see judge.py.
"""
