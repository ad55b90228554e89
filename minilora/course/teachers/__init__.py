"""What only teachers use: grading, reports, solutions, `minilora teach`."""
