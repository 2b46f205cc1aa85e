"""The replay benchmark: composed sessions of real, graded answers, played by every policy. `run.run` is the story."""
