"""A value model on the V0 authors' public data, and what asking one costs."""
