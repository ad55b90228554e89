"""The other methods of parameter-efficient fine-tuning, LoRA's initializations, several adapters.

A method is defined by the parameters it adds, their initialization, and the line that uses them.
Read `methods.py` first: it has the table of methods and their initializations.
"""
