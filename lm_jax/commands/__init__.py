"""Command line of lm_jax: a module for each command."""
