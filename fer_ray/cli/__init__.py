"""The command line: verbs, stages and studies; joins Ray."""
