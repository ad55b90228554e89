"""The other methods of parameter-efficient fine-tuning, LoRA's initializations, several adapters.

Read `methods.py` first: it has the table of methods and their initializations.
"""
