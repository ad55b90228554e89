"""Read and write files: Hugging Face, PEFT, GGUF, bitsandbytes, checkpoints, downloads.

Every number in a header is checked against the file before it is used, and nothing is unpickled.
Read `safetensors_file.py` first, then `pretrained.py`, which opens a model by its name.
"""
