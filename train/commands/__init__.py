"""The commands of `seqroute-train`, by what they need: a log, a folder of graded answers, other programs' data."""
