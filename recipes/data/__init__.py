"""The paper's training set and benchmarks, checked and written as verl reads them."""
