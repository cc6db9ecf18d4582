"""What is relied on in verl, and whether all processes run the same code."""
