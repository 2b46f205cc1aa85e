"""The replay benchmark: every policy plays composed sessions of real, graded answers."""
