"""What students use: the exercises, the judge, the process of an answer, `minilora learn`."""
