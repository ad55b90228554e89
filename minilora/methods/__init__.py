"""Other methods of parameter-efficient fine-tuning, initializations of LoRA, several adapters.

Read `registry.py` first: it has the table of methods and their initializations.
"""
