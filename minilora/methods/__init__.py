"""Other methods of parameter-efficient fine-tuning, initializations, several adapters, and Muon.

Read `method.py` first: a method is one file that ends with its `Method`; `registry.py` lists all.
"""
