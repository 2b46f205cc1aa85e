"""Graded counterfactual sessions through the configured models: data before there is a log."""
