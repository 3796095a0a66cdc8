"""Arms x coverage x seeds: specification, runner, verdicts."""
