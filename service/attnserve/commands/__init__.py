"""One module per subcommand, each with `configure(parser)` (no heavy import) and `run(args) -> exit code`."""
